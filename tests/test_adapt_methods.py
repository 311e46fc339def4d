"""Methods that edit the encoder, from a model folder to a model folder: fresh, resumed, and with languages added later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import training_fakes as fakes
from isogloss.adapt.base import find_method
from isogloss.core.errors import ConfigError
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import matrices, split_rows
from isogloss.encoders.presets import build_encoder, preset
from isogloss.evaluation.subnetworks import mask_overlap, masks_of
from isogloss.hub.load import load_encoder
from isogloss.hub.save import save_model
from isogloss.objectives.base import build_objective
from isogloss.training.finetune import build_finetune_job, parse_finetune
from isogloss.training.job import Job, build_job
from isogloss.training.recipe import parse_recipe
from small_corpus import speech_corpus

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("subnetwork", {"batches": 2, "sparsity": 0.4}),
    ("one_hot", {}),
    ("gates", {}),
    ("adapters", {"bottleneck": 4}),
    ("lora", {"rank": 2}),
]
OBJECTIVE = {"name": "wav2vec2", "num_codes": 8, "target_width": 16, "final_width": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold a model, a corpus of languages a and b, and one of a, b and c."""
    folder = tmp_path_factory.mktemp("adapt")
    torch.manual_seed(0)
    encoder = build_encoder(preset("wave-tiny"))
    save_model(folder / "model", encoder, build_objective(OBJECTIVE, encoder), {})
    for languages in ("ab", "abc"):
        speech_corpus(folder / languages, [9000 + 500 * i for i in range(12)], languages=languages)
    return folder


def job_of(
    method: str, settings: dict[str, Any], model: Path, corpus: Path, run_dir: Path, updates: int = 2, **data: Any
) -> Job:
    tree = {
        "start": {"model": str(model)},
        "data": {
            "path": str(corpus),
            "seconds_per_update": 4.0,
            "micro_batch_seconds": 1.5,
            "max_seconds": 1.0,
            "min_seconds": 0.1,
            "num_workers": 0,
            **data,
        },
        "optim": {"lr": 1e-2},
        "schedule": {"shape": "constant"},
        "training": {"updates": updates, "log_every": 1, "checkpoint_every": 1},
    }
    module = find_method(method)
    job: Job = module.build(parse_recipe(tree, "test"), module.Config.model_validate(settings), run_dir)
    return job


def finetune_tree(start: Path, corpus: Path) -> dict[str, Any]:
    return {
        "start": {"model": str(start)},
        "task": {"name": "asr"},
        "data": {"path": str(corpus), "seconds_per_update": 4.0, "micro_batch_seconds": 1.5, "max_seconds": 1.0}
        | {"min_seconds": 0.1, "num_workers": 0},
        "optim": {"lr": 1e-2, "weight_decay": 0.1},
        "schedule": {"shape": "constant"},
        "training": {"updates": 2, "log_every": 1, "checkpoint_every": 1},
    }


def states(encoder: Encoder, language: str) -> Tensor:
    with torch.no_grad():
        return encoder.for_language(language)([torch.sin(torch.arange(8000) / 15)]).last.values_ND


@pytest.mark.parametrize(("method", "settings"), METHODS)
def test_a_model_becomes_one_that_knows_the_languages_and_learns_another_without_touching_them(
    folder: Path, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    first = tmp_path / "first"
    fakes.run(job_of(method, settings, folder / "model", folder / "ab", first, updates=1), first)
    # the same command again finds the same start, and goes on
    job = job_of(method, settings, folder / "model", folder / "ab", first, updates=1)
    result = fakes.run(job, first, resume="must")
    assert result.step == 1
    adapted = load_encoder(first / "model")
    assert adapted.edits is not None
    assert adapted.edits.languages == ("a", "b")
    assert not torch.allclose(states(adapted, "a"), states(adapted, "b"))
    if method == "subnetwork":
        assert mask_overlap(adapted).sparsity_L == pytest.approx([0.4, 0.4], abs=1e-3)

    second = tmp_path / "second"
    fakes.run(job_of(method, settings, first / "model", folder / "abc", second), second)
    grown = load_encoder(second / "model")
    assert grown.edits is not None
    assert grown.edits.languages == ("a", "b", "c")
    for language in "ab":
        assert torch.equal(states(grown, language), states(adapted, language))
    rows, old = split_rows(grown), split_rows(adapted)
    assert all(torch.equal(rows[name], row) for name, row in old.items())
    assert not torch.allclose(states(grown, "c"), states(load_encoder(second / "start"), "c"))


def test_only_the_edits_learn_where_what_is_shared_is_frozen(folder: Path, tmp_path: Path) -> None:
    settings = {"bottleneck": 4, "freeze_shared": True}
    fakes.run(job_of("adapters", settings, folder / "model", folder / "ab", tmp_path), tmp_path)
    before, after = load_encoder(folder / "model").state_dict(), load_encoder(tmp_path / "model").state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert any("edit" in name and torch.count_nonzero(tensor) for name, tensor in after.items() if "up_LDB" in name)


def test_lottery_tickets_are_drawn_after_training_on_each_language_alone(folder: Path, tmp_path: Path) -> None:
    settings = {"importance": "lottery", "alone_updates": 1, "sparsity": 0.5}
    job = job_of("subnetwork", settings, folder / "model", folder / "ab", tmp_path, updates=1)
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {"a", "b"}
    start, dense = load_encoder(tmp_path / "start").state_dict(), load_encoder(folder / "model").state_dict()
    assert all(torch.equal(start[name], tensor) for name, tensor in dense.items())  # rewound
    overlap = mask_overlap(job.learner.encoder)
    assert overlap.expected_LL[0, 1] < overlap.iou_LL[0, 1] < 1


def test_fine_tuning_goes_on_under_the_same_masks(folder: Path, tmp_path: Path) -> None:
    start = tmp_path / "masks" / "start"
    job_of("subnetwork", {"importance": "random", "sparsity": 0.5}, folder / "model", folder / "ab", tmp_path / "masks")
    fakes.run(build_finetune_job(parse_finetune(finetune_tree(start, folder / "ab"), "test")), tmp_path / "asr")
    before, after = load_encoder(start), load_encoder(tmp_path / "asr" / "model")
    assert all(torch.equal(split_rows(after)[name], row) for name, row in split_rows(before).items())
    for name, edit in masks_of(after).items():
        unused = ~(edit.mask(0) | edit.mask(1))
        old, new = matrices(before)[name].weight, matrices(after)[name].weight
        assert torch.equal(old[unused], new[unused])
        assert (old != new)[~unused].float().mean() > 0.9


def test_fine_tuning_freezes_what_is_shared_where_the_recipe_says_so(folder: Path, tmp_path: Path) -> None:
    job_of("subnetwork", {"importance": "random"}, folder / "model", folder / "ab", tmp_path / "masks")
    tree = finetune_tree(tmp_path / "masks" / "start", folder / "ab")
    frozen = build_finetune_job(parse_finetune({**tree, "edits": {"freeze_shared": True}}, "test")).start
    assert frozen is not None
    assert any("norm" in name for name in frozen.frozen)
    with pytest.raises(ConfigError, match=r"so \[edits\] changes nothing"):
        parse_finetune({**tree, "start": {"model": str(folder / "model")}, "edits": {"freeze_shared": True}}, "test")


def test_a_run_from_scratch_takes_edits_for_the_languages_of_its_corpus(folder: Path) -> None:
    tree = {
        "encoder": {"preset": "wave-tiny"},
        "objective": OBJECTIVE,
        "edits": {"kind": "gates"},
        "data": {"path": str(folder / "abc"), "num_workers": 0, "min_seconds": 0.1},
        "training": {"updates": 1},
    }
    job = build_job(parse_recipe(tree, "test"))
    for learner in (job.learner, job.build()):
        assert learner.encoder.edits is not None
        assert learner.encoder.edits.languages == ("a", "b", "c")


def test_edits_of_another_kind_are_refused(folder: Path, tmp_path: Path) -> None:
    job_of("subnetwork", {"importance": "random"}, folder / "model", folder / "ab", tmp_path / "masks")
    with pytest.raises(ConfigError, match="has masks for its languages already, not adapters"):
        job_of("adapters", {}, tmp_path / "masks" / "start", folder / "ab", tmp_path / "adapters")


def test_settings_that_would_change_nothing_are_refused(folder: Path, tmp_path: Path) -> None:
    job_of("subnetwork", {"importance": "random"}, folder / "model", folder / "ab", tmp_path / "masks")
    masked = tmp_path / "masks" / "start"
    with pytest.raises(ConfigError, match=r"keeps them, so `\[method\]` would change nothing.*--method continued"):
        job_of("subnetwork", {"sparsity": 0.5}, masked, folder / "ab", tmp_path / "again")
    with pytest.raises(ConfigError, match="cannot have a `lottery` mask"):
        job_of("subnetwork", {"importance": "lottery"}, masked, folder / "abc", tmp_path / "again")
    assert job_of("continued", {}, masked, folder / "ab", tmp_path / "on").learner.encoder.edits is not None
    with pytest.raises(
        ConfigError, match=r"has masks for each of a, b, but not for c, .*; add it with `--method subnet"
    ):
        job_of("continued", {}, masked, folder / "abc", tmp_path / "on")
    fakes.run(job_of("lora", {"rank": 2}, folder / "model", folder / "ab", tmp_path / "lora", 1), tmp_path / "lora")
    for corpus in ("ab", "abc"):
        with pytest.raises(ConfigError, match=r"`method.rank` is 4, but they were made with 2"):
            job_of("lora", {"rank": 4}, tmp_path / "lora" / "model", folder / corpus, tmp_path / "other")


def test_utterances_that_do_not_say_their_language_are_refused_before_anything_is_computed(
    folder: Path, tmp_path: Path
) -> None:
    from lhotse import CutSet

    from isogloss.data.inputs import open_corpus

    cuts = list(open_corpus(folder / "ab"))
    cuts[0].supervisions[0].language = None
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    for method in ("subnetwork", "gates"):
        with pytest.raises(ConfigError, match="1 of 12 utterances do not say their language"):
            job_of(method, {}, folder / "model", tmp_path, tmp_path / method)


def test_a_task_that_finds_the_language_is_not_told_it(folder: Path, tmp_path: Path) -> None:
    job_of("subnetwork", {"importance": "random"}, folder / "model", folder / "ab", tmp_path)
    tree = {**finetune_tree(tmp_path / "start", folder / "ab"), "task": {"name": "lid"}}
    with pytest.raises(ConfigError, match="`lid` must find the language.*would give the answer away"):
        build_finetune_job(parse_finetune(tree, "test"))
