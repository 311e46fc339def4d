"""Tasks on an encoder: what learns and when, what a model keeps, and the whole way from a recipe to figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_helpers import make_cut
from isogloss.core.errors import CheckpointError, ConfigError
from isogloss.core.types import Packed
from isogloss.encoders.presets import build_encoder
from isogloss.evaluation.predictions import read_predictions
from isogloss.evaluation.tables import read_results
from isogloss.evaluation.tasks import TaskResult, write_predictions
from isogloss.hub.save import save_model
from isogloss.nn.pooling import Pool
from isogloss.tasks.base import Task, build_task
from isogloss.training.finetune import load_finetune
from isogloss.training.loop import train
from objective_cases import BATCH, WAVE, speech
from planted import make_cut as planted_cut

LABELS = {"symbols": ("a", "b", "c", "d")}
ENCODER = WAVE.model_copy(update={"dropout": 0.1})


def task_and_encoder(**settings: object) -> tuple[Task, torch.nn.Module]:
    torch.manual_seed(0)
    encoder = build_encoder(ENCODER)
    return build_task({"name": "asr", "labels": LABELS, **settings}, encoder).train(), encoder.train()


def test_weighted_layers_learn_and_the_last_alone_does_not_need_them() -> None:
    task, encoder = task_and_encoder(layers="weighted")
    task(encoder, speech(BATCH)).total.backward()
    assert task.layer_logits_L.grad is not None
    assert task.layer_logits_L.grad.abs().min() > 0
    assert not any("layer_logits" in name for name, _ in task_and_encoder()[0].named_parameters())


def test_an_encoder_that_does_not_learn_is_run_without_dropout_masks_or_graph() -> None:
    task, encoder = task_and_encoder(mask_probability=0.5, mask_span=2)
    encoder.requires_grad_(False)
    batch = speech(BATCH)
    first, second = task.states(encoder, batch), task.states(encoder, batch)
    assert torch.equal(first.values_ND, second.values_ND)
    assert not first.values_ND.requires_grad
    torch.testing.assert_close(first.values_ND, encoder.eval()(batch.audio).last.values_ND, atol=1e-5, rtol=1e-5)


def test_an_encoder_that_waits_gets_zero_gradients_and_learns_later() -> None:
    task, encoder = task_and_encoder(head_only=0.5)
    task(encoder, speech(BATCH)).total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())
    assert all(p.grad is not None and p.grad.any() for p in task.parameters())
    task.after_step(0.5)
    task(encoder, speech(BATCH)).total.backward()
    assert all(p.grad is not None and p.grad.any() for n, p in encoder.named_parameters() if "mask" not in n)


def test_masks_hide_in_training_only_and_follow_the_seeds() -> None:
    task, encoder = task_and_encoder(mask_probability=0.5, mask_span=2)
    for module in encoder.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    batch = speech(BATCH)
    masked, again = task.states(encoder, batch), task.states(encoder, batch)
    assert torch.equal(masked.values_ND, again.values_ND)
    batch.seeds_B = batch.seeds_B + 1
    assert not torch.equal(task.states(encoder, batch).values_ND, masked.values_ND)
    task.eval()
    plain = task.states(encoder.eval(), batch)
    torch.testing.assert_close(plain.values_ND, encoder(batch.audio).last.values_ND)


def test_counts_are_errors_and_lengths_of_characters_words_and_phones() -> None:
    task, _ = task_and_encoder()
    counts = task.counts(["ab cd", "a"], ["ab dd e", ""])
    assert counts["cer"].tolist() == [[3, 5], [1, 1]]
    assert counts["wer"].tolist() == [[2, 2], [1, 1]]
    phones, _ = task_and_encoder(labels={"unit": "phones", "symbols": ("AA", "K")})
    assert phones.counts(["AA K"], ["K"])["per"].tolist() == [[1, 2]]
    assert phones.requires == {"phones"}


@pytest.mark.parametrize("kind", ["mean", "statistics", "attention"])
def test_pooling_an_utterance_does_not_depend_on_the_others(kind: str) -> None:
    torch.manual_seed(0)
    pool = Pool(6, kind)  # type: ignore[arg-type]
    parts = [torch.randn(n, 6) for n in (3, 5, 1)]
    pooled = pool(Packed.from_list(parts))
    for part, row in zip(parts, pooled, strict=True):
        torch.testing.assert_close(pool(Packed.from_list([part]))[0], row)
    if kind == "statistics":
        expected = torch.cat([parts[0].mean(0), parts[0].std(0, unbiased=False)])
        torch.testing.assert_close(pooled[0], expected, atol=1e-5, rtol=1e-5)
    assert pool.out_width == pooled.shape[1]
    assert torch.isfinite(pool(Packed(torch.zeros(0, 6), torch.tensor([0])))).all()


def labelled_corpus(folder: Path, num_utterances: int = 8) -> Path:
    """Tones of three pitches, written as three letters."""
    import soundfile

    from small_corpus import cut_fields, write_cuts

    folder.mkdir(parents=True)
    random, cuts = np.random.default_rng(0), []
    for number in range(num_utterances):
        letters = random.integers(0, 3, 4)
        wave = np.concatenate([np.sin((0.05 + 0.25 * letter) * np.arange(3200)) * 0.3 for letter in letters])
        soundfile.write(folder / f"u{number}.wav", wave, 16_000, subtype="PCM_16")
        cuts.append(cut_fields(f"u{number}", len(wave) / 16_000, speaker=f"s{number % 4}"))
        cuts[-1]["supervisions"][0]["text"] = "".join("ABC"[letter] for letter in letters)
    write_cuts(folder / "cuts.jsonl", cuts)
    return folder


def test_from_a_model_to_figures(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from isogloss.cli.predict import app
    from isogloss.evaluation.tasks import load_task

    corpus, model = labelled_corpus(tmp_path / "corpus"), tmp_path / "model"
    torch.manual_seed(1)
    encoder = build_encoder(ENCODER.model_copy(update={"dropout": 0.0}))
    save_model(model, encoder, None, {})
    settings = [
        *(f'data.path="{corpus}"', f'start.model="{model}"', "data.seconds_per_update=6.4", "data.num_workers=0"),
        *("data.micro_batch_seconds=3.2", "data.max_seconds=2.0", "training.updates=40", "task.head_only=0.25"),
        *("optim.lr=3e-3", "optim.head_lr=1e-2", "task.mask_probability=0.0", "training.checkpoint_every=10"),
    ]
    recipe = load_finetune("asr", settings)
    result = train(recipe, tmp_path / "run")
    from safetensors.torch import load_file

    waited = load_file(tmp_path / "run" / "checkpoints" / "step_00000030" / "model.safetensors")
    assert "objective.project.weight" in waited
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rates = [row["metrics"]["error_rate"] for row in rows if row["event"] == "update"]
    assert rates[-1] < 0.5 * rates[0], rates
    fine_encoder, task = load_task(result.model_dir)
    assert task.config.labels.symbols  # type: ignore[attr-defined]
    for name, tensor in fine_encoder.state_dict().items():
        assert name.startswith("convolutions.") <= torch.equal(tensor, encoder.state_dict()[name]), name
    arguments = ["--model", str(result.model_dir), "--data", str(corpus), "--out", str(tmp_path / "said.jsonl")]
    shown = CliRunner().invoke(app, [*arguments, "--results", str(tmp_path / "results.jsonl")], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    records = {record.metric: record for record in read_results(tmp_path / "results.jsonl")}
    assert records["cer"].value < 0.5
    assert records["cer"].unit
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [row["id"] for row in said] == [f"u{i}" for i in range(8)]
    assert "is empty" not in shown.output
    # a model that writes blanks alone is told to
    with torch.no_grad():
        task.project.bias[0] += 1e4  # type: ignore[union-attr, index, operator]
    save_model(tmp_path / "blank", fine_encoder, None, {}, task)
    arguments[1] = str(tmp_path / "blank")
    assert "writes blanks alone" in CliRunner().invoke(app, arguments, catch_exceptions=False).output
    # the encoder stays bit for bit while it waits
    short = load_finetune("asr", [*settings, "training.updates=8", "task.head_only=0.99", "optim.weight_decay=0.1"])
    frozen, _ = load_task(train(short, tmp_path / "short").model_dir)
    assert all(torch.equal(t, encoder.state_dict()[n]) for n, t in frozen.state_dict().items())
    # a model of the same task gives its head too
    again = load_finetune(
        "asr", [*settings, f'start.model="{result.model_dir}"', "training.updates=1", "optim.lr=1e-9"]
    )
    continued = train(again, tmp_path / "again")
    start = json.loads((tmp_path / "again" / "start.json").read_text())
    assert "task.project.weight" in start["taken"]
    assert continued.step == 1
    with pytest.raises(CheckpointError, match="fine-tune it first"):
        load_task(model)


def test_what_normalises_to_nothing_is_no_reference(tmp_path: Path) -> None:
    """`predict` and the reports by language count the same utterances, of what `predict` writes and of files with an empty one."""
    task, _ = task_and_encoder()
    cuts = [make_cut(f"u{i}", text=text) for i, text in enumerate(("AB", "!?", "", "cd"))]
    references = [task.reference(cut) for cut in cuts]
    assert references == ["ab", None, None, "cd"]
    phones, _ = task_and_encoder(labels={"unit": "phones", "symbols": ("a",)})
    silent = [planted_cut(name, [(symbol, 0.0, 0.5)]) for name, symbol in (("silent", "SIL"), ("spoken", "a"))]
    assert [phones.reference(cut) for cut in silent] == [None, "a"]
    for number, empty in enumerate((None, "")):
        path = tmp_path / f"{number}.jsonl"
        written = [reference or empty for reference in references]
        ids, said = [cut.id for cut in cuts], ["ab", "x", "x", "c"]
        result = TaskResult(ids, said, written, ["s"] * 4, [1.0] * 4, ["fr"] * 4, labels=["gold"] * 4)
        result.synthetic = [False] * 4
        write_predictions(path, result)
        counts = read_predictions([path], "cer")["fr"]
        assert counts.ids == ["u0", "u3"]
        assert counts.labels == "gold"


def test_a_line_separator_in_a_text_ends_no_line(tmp_path: Path) -> None:
    names = [f"u{mark}" for mark in "\x85\u2028\x0b\r\n"]
    texts = [f"ab{mark}cd" for mark in "\x85\u2028\x0b\r\n"]
    result = TaskResult(names, texts, list(texts), ["s"] * 5, [1.0] * 5, ["fr"] * 5, labels=["gold"] * 5)
    result.synthetic = [False] * 5
    write_predictions(tmp_path / "said.jsonl", result)
    counts = read_predictions([tmp_path / "said.jsonl"], "cer")["fr"]
    assert counts.ids == names
    assert counts.counts_U2[:, 0].sum() == 0


def test_a_model_is_needed() -> None:
    with pytest.raises(ConfigError, match="--from"):
        load_finetune("asr")
