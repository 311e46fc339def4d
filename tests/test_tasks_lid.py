"""Identification of languages: the two heads of the literature, what the classes are, and the whole way to figures."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.languages import normalize_language
from isogloss.core.types import SpeechBatch
from isogloss.data.folders import folder_of_cut
from isogloss.data.index import CorpusIndex
from isogloss.data.shards import shard
from isogloss.encoders.presets import build_encoder
from isogloss.evaluation.relatedness import FLEURS_REGIONS
from isogloss.evaluation.tables import read_results
from isogloss.evaluation.tasks import load_task
from isogloss.hub.save import save_model
from isogloss.tasks.base import build_task, parse_task
from isogloss.tasks.lid import Config, Lid, label_of_tag
from isogloss.training.finetune import build_finetune_job, load_finetune
from isogloss.training.loop import train
from isogloss.training.recipe import find_recipe, recipe_tree
from objective_cases import WAVE, speech
from small_corpus import cut_fields, write_cuts

CLASSES = ("fr", "mdw", "pt")
USELESS = ("head", "hidden_width", "pooling", "attention_width")


def task_and_encoder(**settings: Any) -> tuple[Lid, Any]:
    torch.manual_seed(0)
    encoder = build_encoder(WAVE)
    task = build_task({"name": "lid", "classes": CLASSES, "hidden_width": 8, **settings}, encoder)
    assert isinstance(task, Lid)
    return task.train(), encoder.train()


def batch_of(*languages: str | None, seed: int = 0) -> SpeechBatch:
    batch = speech([6000 + 1500 * i for i in range(len(languages))], seed=seed)
    batch.languages = list(languages)
    return batch


@pytest.mark.parametrize(("head", "expected"), [("hf", 288_614), ("fairseq", 1_154_150)])
def test_heads_have_the_published_numbers_of_parameters(head: str, expected: int) -> None:
    config = Config(classes=tuple(f"l{i}" for i in range(102)), head=head)  # type: ignore[arg-type]
    task = Lid(config, SimpleNamespace(width=1024, num_layers=24))  # type: ignore[arg-type]
    assert sum(p.numel() for p in task.parameters()) == expected


@pytest.mark.parametrize("head", ["hf", "fairseq"])
def test_heads_follow_their_formulas(head: str) -> None:
    task, encoder = task_and_encoder(head=head)
    task.eval(), encoder.eval()
    batch = batch_of("fr", "pt")
    means_BH = torch.stack(
        [(part @ task.project.weight.T + task.project.bias).mean(0) for part in encoder(batch.audio).last.split()]
    )
    inner = torch.nn.functional.gelu(means_BH) if head == "fairseq" else means_BH
    expected = inner @ task.classify.weight.T + task.classify.bias
    torch.testing.assert_close(task.logits(encoder, batch), expected, atol=1e-5, rtol=1e-5)
    said, scores_BC = task.predict_scored(encoder, batch)
    torch.testing.assert_close(scores_BC.exp().sum(1), torch.ones(2))
    assert said == [CLASSES[i] for i in expected.argmax(1).tolist()] == task.predict(encoder, batch)


@pytest.mark.parametrize("pooling", ["mean", "statistics", "attention"])
def test_losses_add_up_over_micro_batches_and_skip_what_is_no_class(pooling: str) -> None:
    task, encoder = task_and_encoder(pooling=pooling, layers="weighted")
    batch = batch_of("fr", "pt-BR", None, "mdw", "de")
    whole = task(encoder, batch)
    assert whole.num_targets == 3
    parts = [task(encoder, batch.select(rows)) for rows in ([0, 2], [1, 4], [3])]
    torch.testing.assert_close(sum(p.total for p in parts), whole.total, atol=1e-5, rtol=1e-5)
    assert [p.num_targets for p in parts] == [1, 1, 1]
    labels = torch.tensor([0, 2, 1])
    expected = -task.logits(encoder, batch)[[0, 1, 3]].log_softmax(1)[torch.arange(3), labels].sum()
    torch.testing.assert_close(whole.total, expected)
    whole.total.backward()
    used = [n for n, p in task.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [n for n in used if n != "pool.score.bias"]  # a softmax does not see a constant
    nothing = task(encoder, batch_of(None, "de"))
    nothing.total.backward()
    assert nothing.num_targets == 0
    assert float(nothing.total.detach()) == 0


def test_the_watch_tells_a_head_that_says_the_same_of_all() -> None:
    task, encoder = task_and_encoder()
    total, count = task(encoder, batch_of("fr", "pt")).metrics["distinction"]
    assert float(total) / float(count) > 0
    torch.nn.init.zeros_(task.classify.weight)
    assert float(task(encoder, batch_of("fr", "pt")).metrics["distinction"][0]) == 0
    assert "distinction" not in task(encoder, batch_of("fr", "fr")).metrics


def test_labels_are_languages_varieties_or_folders(tmp_path: Path) -> None:
    assert [label_of_tag(tag, "language") for tag in ("por_BR", "cmn_hans_cn", "nst-tusom", "und")] == [
        "pt",
        "zh",
        "nst",
        None,
    ]
    assert [label_of_tag(tag, "variety") for tag in ("ar_eg", "ar-MA", "fr")] == ["ar-EG", "ar-MA", "fr"]
    for folder in ("cairo", "rabat"):
        (tmp_path / "corpus" / folder).mkdir(parents=True)
        soundfile.write(tmp_path / "corpus" / folder / f"{folder}.wav", np.zeros(1600), 16_000, subtype="PCM_16")
    index = CorpusIndex.open(tmp_path / "corpus", tmp_path / "cache")
    assert Config(labels="folder").for_corpus(index).classes == ("cairo", "rabat")
    shard([index.cut(row) for row in range(len(index))], tmp_path / "shar")
    shards = CorpusIndex.open(tmp_path / "shar")
    assert Config(labels="folder").for_corpus(shards).classes == ("cairo", "rabat")
    assert {folder_of_cut(shards.cut(row)) for row in range(len(shards))} == {"cairo", "rabat"}
    with pytest.raises(DataError, match="two or more, but the corpus has 0"):
        Config().for_corpus(index)
    task, _ = task_and_encoder(labels="folder", classes=("cairo", "rabat"))
    assert [task.reference(index.cut(row)) for row in range(2)] == ["cairo", "rabat"]
    with pytest.raises(ConfigError, match="two or more different names"):
        task_and_encoder(classes=("fr", "fr"))


def test_the_languages_of_fleurs_are_102_classes_in_seven_regions() -> None:
    assert [len(languages) for languages in FLEURS_REGIONS.values()] == [25, 16, 12, 20, 14, 11, 4]
    languages = [language for region in FLEURS_REGIONS.values() for language in region]
    assert len(set(languages)) == 102
    assert all(label_of_tag(language, "language") == language for language in languages)
    folders = {
        "cmn_hans_cn": "zh",
        "yue_hant_hk": "yue",
        "fil_ph": "fil",
        "nb_no": "nb",
        "ckb_iq": "ckb",
        "es_419": "es",
        "ps_af": "ps",
    }
    assert {folder: label_of_tag(folder, "language") for folder in folders} == folders
    assert [label_of_tag(code, "language") for code in ("iw", "jw", "no", "tl")] == ["he", "jv", "nb", "fil"]
    assert normalize_language("or_in").tag.partition("-")[0] == "or"


@pytest.mark.parametrize("name", ["lid", "lid-fleurs", "lid-voxlingua107", "lid-common-voice", "lid-adi17"])
def test_recipes_are_complete(name: str, tmp_path: Path) -> None:
    path = find_recipe(f"tasks/{name}")
    head = path.read_text(encoding="utf-8")
    assert all(f"# {word}" in head for word in ("command", "hardware", "hours", "expected"))
    assert recipe_tree(path, [])["task"]["name"] == "lid"
    save_model(tmp_path / "model", build_encoder(WAVE), None, {})
    recipe = load_finetune(str(path), [f'start.model="{tmp_path / "model"}"'])
    assert recipe.training.updates


def tones(folder: Path, languages: dict[str, float], number: int, *, seconds: float = 0.4, seed: int = 0) -> Path:
    """A pitch for each language, in noise; five speakers."""
    folder.mkdir(parents=True)
    random, cuts = np.random.default_rng(seed), []
    for language, pitch in languages.items():
        for i in range(number):
            time = np.arange(round(seconds * 16_000))
            wave = 0.3 * np.sin(pitch * time + random.uniform(0, 6)) + random.normal(0, 0.01, len(time))
            name = f"{folder.name}-{language}{i}"
            soundfile.write(folder / f"{name}.wav", wave, 16_000, subtype="PCM_16")
            cuts.append(cut_fields(name, seconds, language=language, speaker=f"s{i % 5}"))
    write_cuts(folder / "cuts.jsonl", cuts)
    return folder


def test_from_tones_to_figures(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from isogloss.cli.predict import app

    pitches = {"hr": 0.06, "sr": 0.35, "fr": 0.9}
    train_corpus = tones(tmp_path / "train", pitches, 6)
    dev = tones(tmp_path / "dev", pitches, 5, seed=1)
    test = tones(tmp_path / "test", {**pitches, "xh": 2.0}, 5, seed=2)
    save_model(tmp_path / "model", build_encoder(WAVE), None, {})
    settings = [
        *(f'data.path="{train_corpus}"', f'start.model="{tmp_path / "model"}"', "data.seconds_per_update=4.8"),
        *("data.num_workers=0", "data.micro_batch_seconds=4.8", "data.max_seconds=2.0", "data.min_seconds=0.2"),
        *("training.updates=40", "task.mask_probability=0.0", "task.head_only=0.0", "optim.lr=2e-3"),
        *("optim.head_lr=1e-2", "training.checkpoint_every=40", "task.hidden_width=16", "task.pooling='statistics'"),
    ]
    model = train(load_finetune("lid", settings), tmp_path / "run").model_dir
    encoder, task = load_task(model)
    assert task.classes == ("fr", "hr", "sr")
    batch = batch_of("fr", "hr")
    again_encoder, again = load_task(model)
    assert torch.equal(task.predict_scored(encoder, batch)[1], again.predict_scored(again_encoder, batch)[1])
    other = tones(tmp_path / "other", pitches, 5, seed=3)
    arguments = ["--model", str(model), "--dev", str(dev), "--data", str(test), "--data", str(other)]
    out, results = tmp_path / "said.jsonl", tmp_path / "results.jsonl"
    shown = CliRunner().invoke(app, [*arguments, "--out", str(out), "--results", str(results)], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    records = {record.metric: record for record in read_results(results) if record.dataset == "test"}
    assert records["accuracy"].value > 0.8
    assert records["accuracy"].unit == "speaker"
    assert records["accuracy"].meta["unknown"] == 5
    assert records["unknown_auroc"].meta["unknown_languages"] == ["xh"]
    assert {
        "macro_accuracy",
        "accuracy_short",
        "ece",
        "ece_scaled",
        "log_loss",
        "cavg",
        "eer",
        "false_acceptance",
    } <= set(records)
    assert "accuracy_long" not in records  # every tone is short
    by_language = [record for record in read_results(results) if record.dataset == "test [hr]"]
    assert by_language[0].meta["region"] == "Western Europe"
    assert by_language[0].meta["speakers"] == 5
    said = [json.loads(line) for line in (tmp_path / "said-test.jsonl").read_text().splitlines()]
    assert len(said) == 20
    assert {(line["labels"], line["synthetic"]) for line in said} == {("gold", False)}
    assert (tmp_path / "said-other.jsonl").exists()
    gap = next(record for record in read_results(results) if record.dataset == "test − other")
    assert gap.meta["languages"] == ["fr", "hr", "sr"]  # Xhosa is in one of them only
    assert gap.value == pytest.approx(gap.meta["values"][0] - gap.meta["values"][1])
    assert gap.low <= gap.value <= gap.high
    assert all(abs(sum(np.exp(list(row["scores"].values()))) - 1) < 1e-4 for row in said)
    assert all(row["text"] == max(row["scores"], key=row["scores"].get) for row in said)
    assert "was trained on" not in shown.stderr
    assert not any("trained" in record.notes for record in read_results(results))
    # What the model was trained on tests nothing and calibrates nothing, and the results say so.
    for corpora, note in (
        (["--data", str(train_corpus)], "run was trained on this corpus"),
        (["--data", str(test), "--dev", str(train_corpus)], "temperature and threshold are from"),
    ):
        again_results = tmp_path / f"{len(corpora)}.jsonl"
        arguments = ["--model", str(model), *corpora, "--results", str(again_results)]
        told = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert told.exit_code == 0
        assert f"warning: {train_corpus}: run was trained on this corpus" in told.stderr
        assert all(note in record.notes for record in read_results(again_results))


def test_classes_are_of_the_corpus_and_what_they_leave_out_is_told(tmp_path: Path) -> None:
    corpus = tones(tmp_path / "corpus", {"hr": 0.06, "sr": 0.35, "fr": 0.9}, 2)
    index = CorpusIndex.open(corpus)
    with pytest.raises(DataError, match="but xx, zu are not: by language it has fr, hr, sr"):
        Config(classes=("fr", "xx", "zu")).for_corpus(index)
    assert Config(classes=("fr", "hr")).for_corpus(index).notes(index) == [
        "not learned, as `task.classes` leaves them out (utterances): sr (2)"
    ]
    assert Config().for_corpus(index).notes(index) == []
    silent = tones(tmp_path / "silent", {"hr": 0.06, "sr": 0.35, "und": 0.9}, 2)
    assert Config().for_corpus(CorpusIndex.open(silent)).notes(CorpusIndex.open(silent)) == [
        "not learned, as they have no label: 2 of 6 utterances"
    ]
    save_model(tmp_path / "model", build_encoder(WAVE), None, {})
    recipe = load_finetune(
        "lid",
        [
            f'data.path="{corpus}"',
            f'start.model="{tmp_path / "model"}"',
            'task.classes=["sr","hr"]',
            "data.num_workers=0",
            "data.min_seconds=0.1",
        ],
    )
    job = build_finetune_job(recipe)
    assert job.start is not None
    assert "fr (2)" in job.start.lines()[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "linear"}, "`hidden_width` must be 0, but is 8"),
        ({"attention_width": 7}, "`attention_width` = 7 belongs to `pooling` = attention, but `pooling` is mean"),
    ],
)
def test_settings_that_would_do_nothing_are_refused_in_a_recipe_and_not_in_a_model(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """A model that was saved with them is as good as before; only whoever writes a recipe can still change them."""
    with pytest.raises(ConfigError, match=message):
        parse_task({"name": "lid", "hidden_width": 8, **settings})
    task, encoder = task_and_encoder(**settings)
    save_model(tmp_path / "model", encoder, None, {}, task)
    with pytest.raises(ConfigError, match=message):
        load_finetune(
            "lid", [f'start.model="{tmp_path / "model"}"', *(f"task.{k}={v}" for k, v in task.config if k in USELESS)]
        )
    _, loaded = load_task(tmp_path / "model")
    assert loaded.config == task.config
    parse_task({"name": "lid", "pooling": "attention", "attention_width": 7})
    parse_task({"name": "lid", "head": "linear", "hidden_width": 0})


def test_what_the_threshold_was_fitted_on_is_not_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By recording, by file and by content, whichever part of it was cut, and before the model hears anything."""
    from typer.testing import CliRunner

    from isogloss.cli.predict import app

    task, encoder = task_and_encoder()
    save_model(tmp_path / "model", encoder, None, {}, task)
    dev, test = (tones(tmp_path / name, {"fr": 0.2, "pt": 0.9}, 3, seed=i) for i, name in enumerate(("dev", "test")))
    heard = tmp_path / "dev" / "dev-fr1.wav"
    seconds = soundfile.info(heard).duration
    shutil.copyfile(heard, tmp_path / "copied.wav")
    arguments = ["--model", str(tmp_path / "model"), "--dev", str(dev), "--data", str(test)]

    def refused(name: str, source: str, *, start: float = 0.0) -> str:
        folder = tmp_path / f"{name}-again"
        folder.mkdir()
        fields = cut_fields(name, seconds, source=source)
        part = {"id": "x", "start": start, "duration": seconds - start}
        write_cuts(folder / "cuts.jsonl", [{**fields, **part}])
        with pytest.raises(ConfigError, match="cannot test them") as error:
            CliRunner().invoke(app, [*arguments, "--data", str(folder)], catch_exceptions=False)
        return str(error.value)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    with monkeypatch.context() as patched:
        patched.setattr("isogloss.evaluation.tasks.run_task", never)
        assert "1 by recording id (dev-fr1)" in refused("dev-fr1", str(heard), start=0.1)
        assert "1 by file" in refused("other-name", str(heard), start=0.1)
        assert "1 by content (copy)" in refused("copy", str(tmp_path / "copied.wav"))
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0


def test_corpora_of_one_name_are_told_apart(tmp_path: Path) -> None:
    from isogloss.cli.predict import _dataset_names

    first, second = tmp_path / "fleurs" / "test", tmp_path / "adi17" / "test"
    assert _dataset_names([first]) == ["test"]
    assert _dataset_names([first, second]) == ["fleurs-test", "adi17-test"]
    with pytest.raises(ConfigError, match="have the same name"):
        _dataset_names([first, first])


def test_the_benchmark_writes_a_part_again_that_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a part is there before its cuts are."""
    path = Path(__file__).parent.parent / "benchmarks" / "lid.py"
    spec = importlib.util.spec_from_file_location("benchmark_lid", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    corpus, out = tones(tmp_path / "corpus", {"hr": 0.06, "sr": 0.35}, 2), tmp_path / "out"
    (out / "train").mkdir(parents=True)
    monkeypatch.setattr(module, "divide", lambda cuts: {"train": cuts})
    monkeypatch.setattr(module, "run", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["lid.py", "--data", str(corpus), "--out", str(out), "--arm", "frozen"])
    module.main()
    assert len(CorpusIndex.open(out / "train")) == 4
    finished = (out / "train" / "cuts.jsonl.gz").stat().st_mtime_ns
    module.main()
    assert (out / "train" / "cuts.jsonl.gz").stat().st_mtime_ns == finished
