"""Adapt a model: guard, held-out audio, replay, the method's job, early stop, and figures before and after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from isogloss.adapt.base import AdaptRecipe, find_method
from isogloss.adapt.heldout import Utterance, heldout_batches, score, score_utterances
from isogloss.adapt.judge import HeldOutJudge
from isogloss.adapt.mixture import Mixture, prepare_mixture
from isogloss.adapt.report import masked_records, perplexities, plain_records
from isogloss.core import dist
from isogloss.core.errors import ConfigError
from isogloss.core.types import SpeechBatch
from isogloss.data.index import CorpusIndex
from isogloss.data.inputs import open_corpus
from isogloss.evaluation.quick import quick_probe
from isogloss.evaluation.tables import ResultRecord, write_results
from isogloss.training.checkpoint import Checkpoints
from isogloss.training.job import Job
from isogloss.training.loop import TrainResult, run_job
from isogloss.training.parallel import Learner, explained_failures, on_main, set_threads, unsharded
from isogloss.training.preempt import stop_on_signals
from isogloss.training.recipe import Recipe
from isogloss.training.rundir import Resume
from isogloss.training.schedule import learning_rate_scale

SYSTEMS = ("before", "after")


@dataclass(frozen=True)
class AdaptResult:
    """What an adaptation leaves: the model, the update that it is of (0: the start), the last update, figures and `summary`."""

    model_dir: Path
    step: int
    last_step: int
    records: list[ResultRecord]
    summary: dict[str, Any]


@dataclass
class _Corpora:
    """Where figures are taken: name → batches."""

    target: list[SpeechBatch]
    source: list[SpeechBatch] | None
    probe: list[Any]


@dataclass(frozen=True)
class _Figures:
    target: list[Utterance]
    source: list[Utterance] | None
    means: dict[str, float]
    probe: dict[str, float]


def adapt(
    recipe: AdaptRecipe,
    run_dir: Path | str,
    *,
    tests: Sequence[Path | str] = (),
    source: Path | str | None = None,
    replay_data: Path | str | None = None,
    probe_data: Path | str | None = None,
    resume: Resume = "auto",
) -> AdaptResult:
    """Adapt the model that `recipe.recipe.start` names to the audio at `recipe.recipe.data.path`, or go on with that.

    `tests` are corpora whose recordings may not be heard; `source` is a corpus of the source languages on which forgetting is
    measured; `replay_data` is mixed in (`adapt.replay`); `probe_data` has the labels of the quick probe (the target corpus by
    default). Leaves `model/`, `before/` (the start, as it was opened), `results.jsonl` and `adapt.json`. Under `torchrun` every
    rank calls this.
    """
    run_dir = Path(run_dir)
    if not recipe.recipe.data.path:
        raise ConfigError("there is no target audio: give a corpus with `--data DIR`")
    set_threads(recipe.recipe.training.threads)
    method = find_method(recipe.method["name"])
    with (
        dist.process_group(1.2 * recipe.recipe.training.timeout_seconds) as device,
        stop_on_signals() as stop,
        explained_failures(),
    ):
        mixture = on_main(lambda: _mixture(recipe, run_dir, tests, replay_data))
        on_main(lambda: _same_method(recipe, run_dir))
        resolved = _with_corpus(recipe, mixture)
        job: Job = method.build(resolved, method.Config.model_validate(recipe.method), run_dir)
        learner = job.learner.to(device)
        corpora = _Corpora(
            heldout_batches(resolved, mixture.heldout, learner, max_seconds=recipe.adapt.heldout_seconds),
            None
            if source is None
            else heldout_batches(resolved, source, learner, max_seconds=recipe.adapt.heldout_seconds),
            list(open_corpus(probe_data or recipe.recipe.data.path)),
        )
        before = _measure(learner, corpora)
        on_main(lambda: _keep_start(job, run_dir))
        judge = HeldOutJudge(learner, corpora.target, run_dir, start=before.means, patience=recipe.adapt.patience)
        result: TrainResult | None = None
        if not recipe.is_empty:
            result = run_job(job, run_dir, device, stop, resume=resume, judge=judge)
        last = 0 if result is None else result.step
        chosen = judge.best(last)
        if chosen:
            _fill(learner, run_dir, job, chosen)
            with unsharded(learner):
                after = _measure(learner, corpora)
        else:
            after = before
            on_main(lambda: _copy(run_dir / "before", run_dir / "model"))
        records = _records(before, after, resolved.training.seed)
        summary = _summary(recipe, job, mixture, judge, chosen, last)
        on_main(lambda: _write(run_dir, records, summary))
    return AdaptResult(run_dir / "model", chosen, last, records, summary)


def _mixture(
    recipe: AdaptRecipe, run_dir: Path, tests: Sequence[Path | str], replay_data: Path | str | None
) -> Mixture:
    return prepare_mixture(
        run_dir / "corpus",
        recipe.recipe.data.path,
        heldout=recipe.adapt.heldout,
        source=replay_data,
        replay=recipe.adapt.replay,
        tests=tests,
        min_seconds=recipe.recipe.data.min_seconds,
        seed=recipe.recipe.training.seed,
    )


def _same_method(recipe: AdaptRecipe, run_dir: Path) -> None:
    """Refuse a folder that was begun with another method: the masks that were found then would be told as these."""
    mark, own = run_dir / "method.json", recipe.method
    if not mark.exists():
        mark.write_text(json.dumps(own) + "\n", encoding="utf-8")
        return
    old = json.loads(mark.read_text(encoding="utf-8"))
    changed = sorted(key for key in {*old, *own} if old.get(key) != own.get(key))
    if changed:
        told = ", ".join(f"`method.{key}` (was {old.get(key)!r}, is {own.get(key)!r})" for key in changed)
        raise ConfigError(
            f"{run_dir} was begun with another method: {told}; go on with the old one, or choose another folder"
        )


def _with_corpus(recipe: AdaptRecipe, mixture: Mixture) -> Recipe:
    """Return the recipe on the mixture, with a measurement and a checkpoint every so many passes."""
    own = recipe.recipe
    per_pass = CorpusIndex.open(mixture.train).seconds / own.data.seconds_per_update
    every = max(1, round(recipe.adapt.evaluate_every * per_pass))
    # The best update lies at most `patience` measurements back; one more is the last update of a run.
    schedule = {"probe_every": every, "checkpoint_every": every, "keep": recipe.adapt.patience + 3}
    return own.model_copy(
        update={
            "data": own.data.model_copy(update={"path": str(mixture.train)}),
            "training": own.training.model_copy(update=schedule),
        }
    )


def _measure(learner: Learner, corpora: _Corpora) -> _Figures:
    return _Figures(
        target=score_utterances(learner, corpora.target),
        source=None if corpora.source is None else score_utterances(learner, corpora.source),
        means=score(learner, corpora.target).means(),
        probe=_probe(learner, corpora.probe),
    )


def _probe(learner: Learner, cuts: list[Any]) -> dict[str, float]:
    was_training = learner.training
    learner.eval()
    with torch.no_grad():
        figures = quick_probe(learner.encoder, cuts)
    learner.train(was_training)
    return {name.removeprefix("probe/"): value for name, value in figures.items() if name.endswith("accuracy")}


def _keep_start(job: Job, run_dir: Path) -> None:
    if not (run_dir / "before").exists():
        job.save(job.learner, run_dir / "before", {"step": 0})


def _copy(folder: Path, target: Path) -> None:
    """Put a copy of a model folder in place, whole."""
    temporary = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(folder, temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def _fill(learner: Learner, run_dir: Path, job: Job, step: int) -> None:
    """Give the learner, sharded or not, the tensors of one of its checkpoints."""
    tensors = load_file(Checkpoints(run_dir, job.training.keep).path(step) / "model.safetensors")
    for name, target in learner.state_dict().items():
        dist.copy_into(target, tensors[name])


def _records(before: _Figures, after: _Figures, seed: int) -> list[ResultRecord]:
    records = masked_records(before.target, after.target, dataset="target held out", systems=SYSTEMS, seed=seed)
    if before.source is not None and after.source is not None:
        records += masked_records(before.source, after.source, dataset="source", systems=SYSTEMS, seed=seed)
    for task, dataset, old, new in (
        ("codes", "target held out", perplexities(before.means), perplexities(after.means)),
        ("quick probe", "probe", before.probe, after.probe),
    ):
        records += plain_records(old, new, task=task, dataset=dataset, systems=SYSTEMS, seed=seed)
    return records


def _summary(
    recipe: AdaptRecipe, job: Job, mixture: Mixture, judge: HeldOutJudge, chosen: int, last: int
) -> dict[str, Any]:
    rates = _learning_rates(job, last)
    per_update = recipe.recipe.data.seconds_per_update
    passes = last * per_update / (mixture.target_seconds + mixture.source_seconds)
    return {
        "model": recipe.recipe.start.model if recipe.recipe.start is not None else "",
        "method": recipe.method,
        "objective": recipe.recipe.objective["name"],
        "updates": last,
        "planned_updates": 0 if recipe.is_empty else job.total_updates,
        "chosen_update": chosen,
        "stopped_early": not recipe.is_empty and last < job.total_updates,
        "passes": passes,
        "target_seconds": mixture.target_seconds,
        "replayed_seconds": mixture.source_seconds,
        "held_out_by": mixture.divided_by,
        "held_out_metric": judge.metric,
        "held_out_before": judge.value(0),
        "held_out_best": judge.value(chosen),
        "learning_rate": rates,
        "start": None if job.start is None else job.start.tree(),
        "config": recipe.tree(),
    }


def _learning_rates(job: Job, last: int) -> dict[str, float]:
    """Return the rates of the updates that were computed, from the schedule that the loop reads: first, highest, last, mean."""
    rates = [job.optim.lr * learning_rate_scale(job.schedule, step, job.total_updates) for step in range(last)]
    if not rates:
        return {}
    return {"first": rates[0], "peak": max(rates), "last": rates[-1], "mean": sum(rates) / len(rates)}


def _write(run_dir: Path, records: list[ResultRecord], summary: dict[str, Any]) -> None:
    write_results(run_dir / "results.jsonl", records)
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    (run_dir / "adapt.json").write_text(text, encoding="utf-8")
