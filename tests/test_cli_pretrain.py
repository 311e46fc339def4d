"""`isogloss pretrain`: from the command line to a model, resumed by the same command, with honest exit codes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import training_fakes as fakes
from isogloss.cli.main import main

TINY = [
    *("--set", "encoder.preset=wave-tiny", "--set", "objective.num_codes=8", "--set", "objective.target_width=16"),
    *(
        "--set",
        "objective.final_width=16",
        "--set",
        "data.seconds_per_update=3.2",
        "--set",
        "data.micro_batch_seconds=1.3",
    ),
    *("--set", "data.max_seconds=1.2", "--set", "data.min_seconds=0.3", "--set", "data.num_workers=0"),
    *("--set", "data.bins_multiple_of=2", "--set", "training.updates=3", "--set", "training.log_every=1"),
]


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["pretrain", *arguments])
    return int(left.value.code or 0)


def labelled(folder: Path) -> Path:
    """Make a corpus of two languages with two speakers each."""
    lines = gzip.decompress((fakes.make_corpus(folder, 10) / "cuts.jsonl.gz").read_bytes()).decode().splitlines()
    cuts = [json.loads(line) for line in lines]
    for cut in cuts:
        cut["supervisions"][0]["language"] = (
            "pl" if cut["supervisions"][0]["speaker"] in ("speaker0", "speaker1") else "fr"
        )
    text = "".join(json.dumps(cut) + "\n" for cut in cuts)
    (folder / "cuts.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def test_pretrain_trains_and_the_same_command_finds_it_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from isogloss import load_encoder

    corpus = fakes.make_corpus(tmp_path / "corpus", 10)
    command = ["wav2vec2-small", "--data", str(corpus), "--out", str(tmp_path / "run"), *TINY]
    command += ["--probe-data", str(labelled(tmp_path / "labelled")), "--probe-every", "2"]
    assert call(*command) == 0
    said = capsys.readouterr()
    assert "3 updates" in said.out
    assert "labelled: languages (fr, pl)" in said.err
    assert load_encoder(tmp_path / "run" / "model").width == 64
    assert len(fakes.read_log(tmp_path / "run")) == 3
    assert call(*command) == 0
    assert len(fakes.read_log(tmp_path / "run")) == 3
    assert "probe/language_accuracy" in fakes.read_log(tmp_path / "run", "probe")[0]["results"]
    assert len((tmp_path / "run" / "energy.jsonl").read_text().splitlines()) == 2
    assert call(*command, "--resume", "never") == 2
    assert "holds a run already" in capsys.readouterr().err


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("wav2vec2-smal", "--out", str(tmp_path)) == 2
    assert call("wav2vec2-small", "--out", str(tmp_path)) == 2
    assert call("wav2vec2-small", "--data", str(tmp_path), "--out", str(tmp_path / "run")) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 3
    assert "did you mean `wav2vec2-small`" in said[0]
    assert "there is no corpus: give one with `--data DIR`" in said[1]
    assert call("wav2vec2-small", "--out", str(tmp_path), "--dry-run") == 0
    assert "[optim]" in capsys.readouterr().out


def test_probes_of_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from isogloss.core.errors import ConfigError
    from isogloss.training.loop import train
    from isogloss.training.recipe import load_recipe

    corpus = fakes.make_corpus(tmp_path / "corpus", 4)
    command = ["wav2vec2-small", "--data", str(corpus), "--out", str(tmp_path / "run"), *TINY]
    assert call(*command, "--probe-every", "2") == 2
    assert call(*command, "--set", "training.probe_every=2") == 2
    assert call(*command, "--probe-data", str(corpus)) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 3
    for line in said[:2]:
        assert "`training.probe_every` is 2, but there is nothing to probe with" in line
        assert "`isogloss pretrain --probe-data DIR`" in line
    assert "the quick probe measures nothing on" in said[2]
    assert not (tmp_path / "run").exists()
    recipe = load_recipe("wav2vec2-small", ["training.probe_every=2", f'data.path="{corpus}"'])
    with pytest.raises(ConfigError, match="there is nothing to probe with; give the training a probe") as told:
        train(recipe, tmp_path / "run")
    assert "isogloss pretrain" not in str(told.value)  # which its caller need not be
    # a recipe's own number is kept, 1000 is for recipes that have none
    probe = ["--probe-data", str(corpus), "--dry-run"]
    assert call(*command, *probe, "--set", "training.probe_every=7") == 0
    assert "probe_every = 7" in capsys.readouterr().out
    assert call(*command, *probe) == 0
    assert "probe_every = 1000" in capsys.readouterr().out
    # … and for each iteration by itself
    own = tmp_path / "own.toml"
    own.write_text(
        'extends = "wav2vec2-small"\n[[iterations]]\ntraining = { probe_every = 500 }\n'
        "[[iterations]]\ntraining = { updates = 4 }\n"
    )
    assert call(str(own), "--out", str(tmp_path / "run"), *probe) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "probe_every" in line] == ["probe_every = 500", "probe_every = 1000"]
    assert call(str(own), "--out", str(tmp_path / "run"), *probe, "--probe-every", "7") == 0
    assert capsys.readouterr().out.count("probe_every = 7\n") == 2


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_torchrun_computes_what_one_process_computes(tmp_path: Path, parallel: str) -> None:
    corpus = fakes.make_corpus(tmp_path / "corpus", 10)
    command = ["pretrain", "wav2vec2-small", "--data", str(corpus), *TINY, "--set", f"training.parallel={parallel}"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    curves = []
    for name, launcher in (
        ("one", []),
        ("two", ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]),
    ):
        full = [sys.executable, "-m", *launcher, "isogloss", *command, "--out", str(tmp_path / name)]
        ended = subprocess.run(full, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert ended.returncode == 0, ended.stderr
        curves.append({row["step"]: (row["loss"], row["grad_norm"]) for row in fakes.read_log(tmp_path / name)})
    for step, row in curves[0].items():
        assert row == pytest.approx(curves[1][step], rel=2e-6)
