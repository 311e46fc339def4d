"""A fine-tuned model on a test corpus: what it says of each utterance, and its figures with intervals over speakers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isogloss.core.errors import CheckpointError, DataError
from isogloss.core.rng import derive_seed
from isogloss.core.types import Packed, SpeechBatch
from isogloss.data.audio import read_audio
from isogloss.data.folders import folder_of_cut
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import row_of, select
from isogloss.evaluation.bootstrap import bootstrap
from isogloss.evaluation.features import Progress
from isogloss.evaluation.identification import Calibration, Scored, identification_records
from isogloss.evaluation.labels import alignment_kind
from isogloss.evaluation.metrics import ratio
from isogloss.evaluation.probes import known_speaker
from isogloss.evaluation.tables import Labels, ResultRecord
from isogloss.hub.load import load_model
from isogloss.hub.loaded import Loaded
from isogloss.tasks.base import Task, build_task

BATCH_SECONDS = 60.0


@dataclass
class TaskResult:
    """Predictions, and references where there are any, of a test corpus in its order.

    `scores_BC` are log-posteriors of the task's classes, where it has classes; of an utterance too short for a frame nothing is
    known, and they are flat.
    """

    ids: list[str]
    predictions: list[str]
    references: list[str | None]
    speakers: list[str | None]
    seconds: list[float] = field(default_factory=list)
    languages: list[str | None] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    scores_BC: npt.NDArray[np.float64] | None = None
    labels: list[Labels] = field(default_factory=list)  # where each reference comes from
    synthetic: list[bool] = field(default_factory=list)  # whether the speech is no one's


def load_task(folder: Path | str) -> tuple[Encoder, Task]:
    """Open a fine-tuned model, or one that was pretrained by CTC: that transcribes as it is.

    `CheckpointError` for a model that does neither.
    """
    loaded = load_model(folder)
    return loaded.encoder.eval(), task_of(loaded, folder)


def task_of(loaded: Loaded, folder: Path | str) -> Task:
    """Return the task of a model that was opened from `folder`, in eval mode; errors as `load_task`."""
    found = loaded.task
    if found is None and (loaded.objective_tree or {}).get("name") == "ctc":
        found = ({"name": "asr", "labels": (loaded.objective_tree or {})["labels"]}, loaded.head_tensors)
    if found is None:
        raise CheckpointError(f"{folder}: holds an encoder and no task; fine-tune it first with `isogloss finetune`")
    task = build_task(found[0], loaded.encoder)
    try:
        task.load_state_dict({"progress": task.progress, **found[1]})
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: the task's tensors do not fit its configuration: {error}") from None
    return task.eval()


@torch.no_grad()
def run_task(encoder: Encoder, task: Task, cuts: Sequence[Any], *, progress: Progress | None = None) -> TaskResult:
    """Return what the task says of each cut; an utterance too short for a frame gets an empty text."""
    device = next(encoder.parameters()).device
    predictions: dict[str, str] = {}
    scores: dict[str, npt.NDArray[np.float64]] = {}
    done = 0.0
    for group in _by_language(encoder, cuts):
        kept, waves = [], []
        for cut in group:
            wave_T = torch.from_numpy(read_audio(cut, sample_rate=encoder.sample_rate))
            predictions[cut.id] = ""
            if encoder.num_frames(len(wave_T)):
                kept.append(cut)
                waves.append(encoder.prepare(wave_T))
        if kept:
            spoken = [cut.supervisions[0] if cut.supervisions else None for cut in kept]
            batch = SpeechBatch(
                audio=Packed.from_list(waves),
                ids=[cut.id for cut in kept],
                languages=[s.language if s is not None else None for s in spoken],
                seeds_B=torch.tensor([derive_seed("predict", cut.id) for cut in kept]),
                speakers=[s.speaker if s is not None else None for s in spoken],
                folders=[folder_of_cut(cut) for cut in kept],
            )
            said, scores_BC = task.predict_scored(encoder, batch.to(device))
            if scores_BC is not None:
                scores.update(zip(batch.ids, scores_BC.double().cpu().numpy(), strict=True))
            predictions.update({cut.id: text for cut, text in zip(kept, said, strict=True)})
        done += len(group)
        if progress is not None:
            progress(done, len(cuts))
    flat_C = np.full(len(task.classes), -np.log(max(len(task.classes), 1)))
    return TaskResult(
        ids=[cut.id for cut in cuts],
        predictions=[predictions[cut.id] for cut in cuts],
        references=[task.reference(cut) for cut in cuts],
        speakers=[known_speaker(cut) for cut in cuts],
        seconds=[float(cut.duration) for cut in cuts],
        languages=[cut.supervisions[0].language if cut.supervisions else None for cut in cuts],
        classes=task.classes,
        scores_BC=np.stack([scores.get(cut.id, flat_C) for cut in cuts]) if task.classes else None,
        labels=[label_kind(task.requires, [cut]) for cut in cuts],
        synthetic=[bool((cut.custom or {}).get("synthetic")) for cut in cuts],
    )


def label_kind(requires: Collection[str], cuts: Sequence[Any]) -> Labels:
    """Return where the labels of cuts come from: phones with times as `alignment_kind`, texts and languages from people."""
    return alignment_kind(cuts) if "phones" in requires else "gold"


def task_records(
    task: Task,
    result: TaskResult,
    cuts: Sequence[Any],
    *,
    system: str,
    dataset: str,
    seed: int = 0,
    notes: str = "",
    calibration: Calibration | None = None,
) -> list[ResultRecord]:
    """Return a record for each of the task's metrics, over the utterances that have a reference.

    A task that chooses among classes gets all figures of identification; `calibration` is fitted on other speech.
    """
    known = [i for i, reference in enumerate(result.references) if reference]
    if not known:
        raise DataError(f"none of the {len(result.ids)} utterances of `{dataset}` is labelled for {task.config.name}")
    references = [str(result.references[i]) for i in known]
    if result.scores_BC is not None:
        return identification_records(
            scored_of(result),
            system=system,
            task=f"{task.config.name}, fine-tuned",
            dataset=dataset,
            calibration=calibration,
            seed=seed,
            synthetic=any((cut.custom or {}).get("synthetic") for cut in cuts),
            notes=notes,
            meta={"unlabelled": len(result.ids) - len(known), "task": task.config.model_dump(mode="json")},
        )
    counts = task.counts(references, [result.predictions[i] for i in known])
    speakers = [result.speakers[i] for i in known]
    synthetic = any((cut.custom or {}).get("synthetic") for cut in cuts)
    return [
        ResultRecord.from_estimate(
            bootstrap(np.asarray(counts[metric]), ratio, clusters=speakers, seed=seed),
            system=system,
            task=f"{task.config.name}, fine-tuned",
            dataset=dataset,
            metric=metric,
            higher_is_better=higher,
            labels=label_kind(task.requires, cuts),
            synthetic_speech=synthetic,
            seeds=(seed,),
            notes=notes,
            meta={
                "utterances": len(known),
                "unlabelled": len(result.ids) - len(known),
                "task": task.config.model_dump(mode="json"),
            },
        )
        for metric, higher in task.metrics.items()
    ]


def scored_of(result: TaskResult) -> Scored:
    """Return the labelled utterances of a task that chooses among classes; `DataError` where none is labelled."""
    known = [i for i, reference in enumerate(result.references) if reference]
    if not known or result.scores_BC is None:
        raise DataError(f"none of the {len(result.ids)} utterances has a label; is the corpus labelled by language?")
    return Scored(
        classes=result.classes,
        labels=[str(result.references[i]) for i in known],
        scores_BC=result.scores_BC[known],
        seconds_B=np.array([result.seconds[i] for i in known]),
        speakers=[result.speakers[i] for i in known],
    )


def write_predictions(path: Path, result: TaskResult) -> None:
    """Write a line of JSON for each utterance, as `isogloss evaluate` and `isogloss languages` read them.

    `id`, `text`, `speaker`, `language`, `seconds`, the `reference` (null where there is none) with its `labels` (gold, silver,
    synthetic) and whether the speech is `synthetic`; a task that chooses among classes adds `scores`, the log-posterior of each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, name in enumerate(result.ids):
            line: dict[str, Any] = {
                "id": name,
                "text": result.predictions[number],
                "speaker": result.speakers[number],
                "language": result.languages[number],
                "seconds": round(result.seconds[number], 3),
                "reference": result.references[number],
            }
            if result.references[number]:
                line |= {"labels": result.labels[number], "synthetic": result.synthetic[number]}
            if result.scores_BC is not None:
                scores_C = [round(score, 6) for score in result.scores_BC[number].tolist()]
                line["scores"] = dict(zip(result.classes, scores_C, strict=True))
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _by_language(encoder: Encoder, cuts: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield groups of similar lengths; an encoder that depends on the language is set to that of each group before it comes."""
    if encoder.edits is None:
        yield from _groups(cuts)
        return
    languages = [cut.supervisions[0].language if cut.supervisions else None for cut in cuts]
    for language in sorted(set(languages), key=str):
        select(encoder, row_of(encoder, language))
        yield from _groups([cut for cut, own in zip(cuts, languages, strict=True) if own == language])
    select(encoder, None)


def _groups(cuts: Sequence[Any]) -> Iterator[list[Any]]:
    group: list[Any] = []
    seconds = 0.0
    for cut in sorted(cuts, key=lambda cut: -cut.duration):
        if group and seconds + cut.duration > BATCH_SECONDS:
            yield group
            group, seconds = [], 0.0
        group.append(cut)
        seconds += cut.duration
    if group:
        yield group
