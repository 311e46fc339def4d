"""Adapt a model: guard, held-out audio, replay, the method's job, early stop, and figures before and after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from isogloss.adapt._budget import check_length, fill_budget, set_measurements, with_small_updates
from isogloss.adapt._edited import edits_of_model
from isogloss.adapt._figures import Figures, measure, open_corpora
from isogloss.adapt._outcome import put_in
from isogloss.adapt._units import check_units, join_units
from isogloss.adapt._utterances import write_utterances
from isogloss.adapt.base import AdaptRecipe, find_method
from isogloss.adapt.heldout import heldout_batches, score
from isogloss.adapt.judge import HeldOutJudge
from isogloss.adapt.mixture import Mixture, prepare_mixture
from isogloss.adapt.report import Choice, adaptation_records
from isogloss.core import dist
from isogloss.core.errors import ConfigError
from isogloss.core.files import write_whole
from isogloss.evaluation.quick import NOTHING_MEASURED
from isogloss.evaluation.tables import ResultRecord, write_results
from isogloss.training.checkpoint import Checkpoints
from isogloss.training.job import Job
from isogloss.training.loop import TrainResult, run_job
from isogloss.training.parallel import Learner, explained_failures, on_main, set_threads, unsharded
from isogloss.training.preempt import stop_on_signals
from isogloss.training.recipe import Recipe
from isogloss.training.rundir import Resume
from isogloss.training.schedule import learning_rate_scale


@dataclass(frozen=True)
class AdaptResult:
    """What an adaptation leaves: the model, the update that it is of (0: the start), the last update, figures and `summary`."""

    model_dir: Path
    step: int
    last_step: int
    records: list[ResultRecord]
    summary: dict[str, Any]


def adapt(
    recipe: AdaptRecipe,
    run_dir: Path | str,
    *,
    tests: Sequence[Path | str] = (),
    source: Path | str | None = None,
    replay_data: Path | str | None = None,
    probe_data: Path | str | None = None,
    replay_units: str | None = None,
    source_units: str | None = None,
    resume: Resume = "auto",
) -> AdaptResult:
    """Adapt the model that `recipe.recipe.start` names to the audio at `recipe.recipe.data.path`, or go on with that.

    `tests` are corpora whose recordings may not be heard; `source` is a corpus of the source languages on which forgetting is
    measured; `replay_data` is mixed in (`adapt.replay`); `probe_data` has the labels of the quick probe (the target corpus by
    default). For an objective that predicts units, `data.units` are those of the target, `replay_units` and `source_units` those
    of the other corpora, all of the same clusters. Leaves `model/`, `before/` (the start, as it was opened), `results.jsonl` and
    `adapt.json`. Under `torchrun` every rank calls this.
    """
    run_dir = Path(run_dir)
    if not recipe.recipe.data.path:
        raise ConfigError("there is no target audio: give a corpus with `--data DIR`")
    set_threads(recipe.recipe.training.threads)
    method = find_method(recipe.method["name"])
    if replay_data is not None and not recipe.adapt.replay:
        raise ConfigError(
            f"`--replay-data {replay_data}` must come with its share of the seconds of training, but none is given, so nothing of it would "
            "be heard; say how much with `--replay`, for instance 0.2, or leave it out"
        )
    replays = replay_data is not None and recipe.adapt.replay > 0
    check_units(
        recipe.recipe, replays=replays, source=source is not None, replay_units=replay_units, source_units=source_units
    )
    with (
        dist.process_group(1.2 * recipe.recipe.training.timeout_seconds) as device,
        stop_on_signals() as stop,
        explained_failures(),
    ):
        mixture = on_main(lambda: _mixture(recipe, run_dir, tests, replay_data))
        on_main(lambda: _same_method(recipe, run_dir))
        resolved, said = _with_corpus(recipe, mixture)
        if replay_units is not None:
            joined = run_dir / "corpus" / "units"
            own = recipe.recipe.data.units or ""
            units = on_main(lambda: join_units(joined, own, replay_units, mixture))
            resolved = resolved.model_copy(update={"data": resolved.data.model_copy(update={"units": units})})
        job: Job = method.build(resolved, method.Config.model_validate(recipe.method), run_dir)
        said += fill_budget(job, resolved)
        set_measurements(job, resolved, recipe.adapt.evaluate_every)
        if not recipe.is_empty:
            on_main(lambda: check_length(job, run_dir))
        if job.start is not None and not recipe.is_empty:
            job.start.notes += said
        learner = job.learner.to(device)
        choosing = heldout_batches(resolved, mixture.choosing, learner, max_seconds=recipe.adapt.heldout_seconds)
        start = score(learner, choosing).means()
        judge = HeldOutJudge(learner, choosing, run_dir, start=start, patience=recipe.adapt.patience)
        corpora = open_corpora(
            resolved,
            mixture,
            learner,
            source=source,
            source_units=source_units,
            probe_data=probe_data or recipe.recipe.data.path,
            max_seconds=recipe.adapt.heldout_seconds,
        )
        before = after = measure(learner, corpora)
        edits = learner.encoder.edits
        own_edits = None if edits is None else edits_of_model(recipe.recipe)
        if edits is not None:
            # What was there before is the model that the run starts from, not one that masks have been put into already.
            before = measure(learner, corpora, known=() if own_edits is None else own_edits.languages)
        on_main(lambda: _keep_start(job, run_dir))
        result: TrainResult | None = None
        if not recipe.is_empty:
            result = run_job(job, run_dir, device, stop, resume=resume, judge=judge)
        last = 0 if result is None else result.step
        chosen = judge.best(last)
        if chosen:
            _fill(learner, run_dir, job, chosen)
            with unsharded(learner):
                after = measure(learner, corpora)
        else:
            on_main(lambda: _copy(run_dir / "before", run_dir / "model"))
        ids = frozenset(name for batch in choosing for name in batch.ids)
        records = adaptation_records(
            before,
            after,
            Choice(chosen, last, judge.num_compared(last), ids),
            seed=resolved.training.seed,
            is_given=edits is not None,
            probe_note=_probe_note(is_target=probe_data is None, is_given=edits is not None),
        )
        heard = 0.0 if result is None else result.audio_seconds
        summary = _summary(recipe, job, mixture, judge, chosen, last, heard)
        summary["put_in"] = put_in(edits, own_edits)
        summary["notes"] = [] if probe_data is None or after.probe else [NOTHING_MEASURED.format(probe_data)]
        on_main(lambda: _write(run_dir, records, summary, before, after))
    return AdaptResult(run_dir / "model", chosen, last, records, summary)


def _probe_note(*, is_target: bool, is_given: bool) -> str:
    notes = ["the probe's recordings were adapted on, without their labels"] * is_target
    notes += ["the model that all languages share: no language was selected"] * is_given
    return "; ".join(notes)


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
        languages=recipe.recipe.data.languages,
        min_seconds=recipe.recipe.data.min_seconds,
        seed=recipe.recipe.training.seed,
    )


def _same_method(recipe: AdaptRecipe, run_dir: Path) -> None:
    """Refuse a folder that was begun with another method: the masks that were found then would be told as these."""
    mark, own = run_dir / "method.json", recipe.method
    if not mark.exists():
        write_whole(mark, json.dumps(own) + "\n")
        return
    old = json.loads(mark.read_text(encoding="utf-8"))
    changed = sorted(key for key in {*old, *own} if old.get(key) != own.get(key))
    if changed:
        told = ", ".join(f"`method.{key}` (was {old.get(key)!r}, is {own.get(key)!r})" for key in changed)
        raise ConfigError(
            f"{run_dir} was begun with another method: {told}; go on with the old one, or choose another folder"
        )


def _with_corpus(recipe: AdaptRecipe, mixture: Mixture) -> tuple[Recipe, list[str]]:
    """Return the recipe on the mixture, and what must be said of it."""
    corpus = {"path": str(mixture.train), "languages": None}
    own = recipe.recipe.model_copy(update={"data": recipe.recipe.data.model_copy(update=corpus)})
    return with_small_updates(own)


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


def _summary(
    recipe: AdaptRecipe, job: Job, mixture: Mixture, judge: HeldOutJudge, chosen: int, last: int, heard: float
) -> dict[str, Any]:
    rates = _learning_rates(job, last)
    passes = heard / (mixture.target_seconds + mixture.source_seconds)
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
        "held_out_by": mixture.held_out_by,
        "reported_by": mixture.reported_by,
        "chosen_and_reported_on": list(mixture.in_both),
        "models_compared": judge.num_compared(last),
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


def _write(
    run_dir: Path, records: list[ResultRecord], summary: dict[str, Any], before: Figures, after: Figures
) -> None:
    write_utterances(run_dir, before, after)
    write_results(run_dir / "results.jsonl", records)
    write_whole(run_dir / "adapt.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
