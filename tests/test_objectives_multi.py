"""Weighted sums: the formula, the routes, and the same numbers however an update is divided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import training_fakes as fakes
from isogloss.core.errors import ConfigError
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.encoders.presets import build_encoder
from isogloss.objectives.base import Objective, build_objective
from isogloss.objectives.multi import Route, routed
from objective_cases import BATCH, NUM_UNITS, WAVE, hubert, speech, wavlm
from objective_cases.multi import PARTS
from test_tasks_asr import labelled_corpus


def built() -> tuple[Objective, torch.nn.Module]:
    torch.manual_seed(0)
    encoder = build_encoder(WAVE)
    return build_objective({"name": "multi", "parts": PARTS}, encoder).train(), encoder.train()


def texts(count: int) -> SpeechBatch:
    return SpeechBatch(
        Packed(torch.zeros(0), torch.zeros(count, dtype=torch.int64)),
        [f"t{i}" for i in range(count)],
        [None] * count,
        torch.arange(count),
        text=["abc"] * count,
    )


def joined(a: SpeechBatch, b: SpeechBatch) -> SpeechBatch:
    lengths_B = torch.cat([a.audio.lengths_B, b.audio.lengths_B])
    return SpeechBatch(
        Packed(torch.cat([a.audio.values_ND, b.audio.values_ND]), lengths_B),
        a.ids + b.ids,
        a.languages + b.languages,
        torch.cat([a.seeds_B, b.seeds_B]),
        text=[*(a.text or []), *(b.text or [])],
    )


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ("any", [0, 1, 2, 3]),
        ("speech", [0, 1]),
        ("text", [0, 2, 3]),
        ("pairs", [0]),
        ("speech_only", [1]),
        ("text_only", [2, 3]),
    ],
)
def test_routes(on: Route, expected: list[int]) -> None:
    spoken = replace(speech([4000, 4000]), text=["a", None], speakers=None)
    assert routed(joined(spoken, texts(2)), on) == expected


def test_the_first_update_is_the_weighted_sum_of_means() -> None:
    multi, encoder = built()
    batch = speech(BATCH)
    terms = multi(encoder, batch)
    parts: dict[str, LossTerms] = {n: p(encoder, batch) for n, p in multi.parts.items()}  # type: ignore[union-attr,operator,misc]
    expected = sum(PARTS[n].get("weight", 1.0) * float(p.total.detach()) / p.num_targets for n, p in parts.items())  # type: ignore[operator]
    assert float(terms.total.detach()) / terms.num_targets == pytest.approx(expected, rel=1e-5)
    assert terms.metrics["transcript/loss"][1] == parts["transcript"].num_targets


def test_later_updates_of_the_same_make_are_divided_by_their_own_counts_however_they_are_divided() -> None:
    """Bins of unequal counts: after an update, the sum over bins is the weighted sum of the whole update's means."""
    multi, encoder = built()
    bins = [speech(BATCH), speech([16000, 8000], seed=1), texts(3)]

    def update() -> tuple[float, int]:
        found = [multi(encoder, b) for b in bins]
        return sum(float(t.total.detach()) for t in found), sum(t.num_targets for t in found)

    update()
    multi.after_step(0.1)
    total, count = update()
    expected = 0.0
    for name, part in multi.parts.items():  # type: ignore[union-attr,operator]
        on = PARTS[name]["on"]
        chosen = [b.select(rows) for b in bins if (rows := routed(b, on))]  # type: ignore[arg-type]
        terms = [part(encoder, b) for b in chosen]
        mean = sum(float(t.total.detach()) for t in terms) / sum(t.num_targets for t in terms)
        expected += PARTS[name].get("weight", 1.0) * mean  # type: ignore[operator]
    assert total / count == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_anything_for_a_part_gives_zero_gradients_to_all() -> None:
    multi, encoder = built()
    multi(encoder, texts(2)).total.backward()
    for module in (multi, encoder):
        assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_faults_of_a_part_are_told() -> None:
    encoder = build_encoder(WAVE)
    with pytest.raises(ConfigError, match="num_code"):
        build_objective({"name": "multi", "parts": {"a": {"objective": {"name": "wav2vec2", "num_code": 1}}}}, encoder)
    with pytest.raises(ConfigError, match="weight"):
        build_objective({"name": "multi", "parts": {"a": {"weight": 0, "objective": {"name": "ctc"}}}}, encoder)


@pytest.mark.parametrize("name", ["a.b", "items", "", "a/b"])
def test_names_of_parts_that_no_module_can_have_are_refused(name: str) -> None:
    tree = {"name": "multi", "parts": {name: {"objective": {"name": "wav2vec2"}}}}
    with pytest.raises(ConfigError, match="a part must be called"):
        build_objective(tree, build_encoder(WAVE))


def test_it_tells_under_which_foreign_names_heads_were_found() -> None:
    """Otherwise `[start]` would report as unused what was used."""
    part = {"objective": {"name": "hubert", "num_units": 12, "final_width": 16}}
    multi = build_objective({"name": "multi", "parts": {"a": part}}, build_encoder(WAVE))
    released = {"label_embeddings": torch.rand(16, 16), "project_context.weight": torch.rand(16, 32)}
    with torch.no_grad():
        assert set(multi.take_heads(released).sources) == set(released)
        prefixed = {f"parts.a.{name}": tensor for name, tensor in released.items()}
        assert set(multi.take_heads(prefixed).sources) == set(prefixed)


@pytest.mark.timeout(120)
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    """Speech with and without transcripts, and texts of another loader: every update has bins that some part has nothing for."""
    corpus, run_dirs = labelled_corpus(tmp_path / "corpus", 12), [tmp_path / "one", tmp_path / "two"]
    overrides = [
        *(f'data.path="{corpus}"', "data.seconds_per_update=3.2", "data.micro_batch_seconds=1.6", "data.num_workers=0"),
        *("data.max_seconds=1.0", "data.bins_multiple_of=4", "training.updates=3", "training.log_every=1"),
        *("encoder.preset=wave-tiny", "encoder.layerdrop=0.5", "training.threads=1"),
        *(
            f"objective.parts.contrastive.objective.{key}"
            for key in ("num_codes=8", "target_width=16", "final_width=16")
        ),
        "objective.parts.transcript.on=pairs",
        f'text.paths=["{corpus}"]',
        *("text.bytes_per_update=16", "text.micro_batch_bytes=4", "text.max_bytes=4"),
    ]
    for run_dir, ranks in zip(run_dirs, (1, 2), strict=True):
        ended = fakes.finish(
            fakes.launch(corpus, run_dir, ranks=ranks, recipe="multi-wav2vec2-ctc-small", overrides=overrides)
        )
        assert [code for code, _ in ended] == [0] * ranks, ended
    one, two = (fakes.read_log(run_dir) for run_dir in run_dirs)
    assert len(one) == 3
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
        assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-4)
        assert theirs["metrics"] == pytest.approx(mine["metrics"], rel=1e-4)


def test_parts_predict_the_units_of_the_one_table_that_a_batch_has() -> None:
    parts = {"masked": {"objective": hubert.SMALL}, "mixed": {"objective": wavlm.SMALL}, **PARTS}
    multi = build_objective({"name": "multi", "parts": parts}, build_encoder(WAVE))
    assert multi.num_units == NUM_UNITS, "the run compares it with the table's"
    of_labels = build_objective({"name": "multi", "parts": parts, "num_units": 7}, build_encoder(WAVE))
    assert of_labels.num_units == 7
    assert of_labels.get_parameter("parts.mixed.heads.0.embeddings_CF").shape[0] == 7
    assert built()[0].num_units is None
    with pytest.raises(ConfigError, match="num_units"):  # no part predicts any
        build_objective({"name": "multi", "parts": PARTS, "num_units": 7}, build_encoder(WAVE))
    parts["mixed"] = {"objective": wavlm.SMALL | {"num_units": 7}}
    with pytest.raises(ConfigError, match=r"equally many units.*\[7, 12\]"):
        build_objective({"name": "multi", "parts": parts}, build_encoder(WAVE))
