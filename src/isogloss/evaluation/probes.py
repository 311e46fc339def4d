"""The frame-wise linear phone probe (arXiv 1807.03748 §3.1): what a linear map can read off one frame, layer by layer.

Labels are the phones whose interval holds a frame's centre. The weight decay, and the layer where there are several, are
chosen on the development split only; the grid is part of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from isogloss.core.errors import DataError
from isogloss.core.rng import generator
from isogloss.evaluation.features import FeatureSource, Progress, frame_centers
from isogloss.evaluation.labels import UNKNOWN, Inventory, alignment_kind, frame_labels, phone_sequence
from isogloss.evaluation.linear import fit_path

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ProbeSplits:
    """Cuts to train on, to choose on, and to test on."""

    train: Sequence[Any]
    dev: Sequence[Any]
    test: Sequence[Any]

    def __post_init__(self) -> None:
        for name in ("train", "dev", "test"):
            if not getattr(self, name):
                raise DataError(
                    f"the {name} split is empty; usually because the corpus has too few speakers or sources"
                )
        ids = [{cut.id for cut in part} for part in (self.train, self.dev, self.test)]
        shared = (ids[0] & ids[1]) | (ids[0] & ids[2]) | (ids[1] & ids[2])
        if shared:
            raise DataError(f"cut `{min(shared)}` is in two splits of a probe; {len(shared)} cuts are; split again")


@dataclass(frozen=True)
class SearchBudget:
    """Everything that a frame probe may try; written into every result."""

    weight_decays: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    max_iterations: int = 60
    max_train_frames: int = 60_000
    max_dev_frames: int = 40_000
    keep_silence: bool = False
    seed: int = 0


class FrameClassifier(Protocol):
    """What tells the phone of a frame, however it was fitted."""

    @property
    def weight_decay(self) -> float:
        """What it was fitted with."""
        ...

    @property
    def is_converged(self) -> bool:
        """Whether fitting came to its end."""
        ...

    def predict(self, values_ND: torch.Tensor) -> Array:
        """Return the most probable class of each row."""
        ...


@dataclass
class PhoneProbe:
    """One layer's result: frame accuracy (micro) and mean recall over phones (macro) on the test split, fractions.

    `correct_B` and `total_B` count test frames per utterance, for intervals over `speakers`.
    """

    source: str
    layer: int
    accuracy: float
    macro_accuracy: float
    dev_accuracy: float
    correct_B: Array
    total_B: Array
    ids: list[str]
    speakers: list[str | None]
    weight_decay: float
    is_converged: bool
    num_train_frames: int
    num_phones: int
    labels: Literal["gold", "silver", "synthetic"]
    budget: SearchBudget
    recalls: dict[str, float] = field(default_factory=dict, repr=False)


def probe_phones(
    source: FeatureSource,
    splits: ProbeSplits,
    *,
    layers: Sequence[int] | None = None,
    budget: SearchBudget | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[PhoneProbe]:
    """Probe every layer of a source and return one result per layer; `best_on_dev` picks the one to report."""
    budget = budget or SearchBudget()
    layers = tuple(source.layers if layers is None else layers)
    inventory = Inventory.of(phone_sequence(cut, keep_silence=budget.keep_silence) for cut in splits.train)
    results = []
    for number, layer in enumerate(layers):
        train_ND, train_N = gather_frames(
            source, splits.train, layer, inventory, budget.max_train_frames, budget.keep_silence, budget.seed
        )
        dev_ND, dev_N = gather_frames(
            source, splits.dev, layer, inventory, budget.max_dev_frames, budget.keep_silence, budget.seed
        )
        models = fit_path(
            train_ND.to(device),
            train_N,
            len(inventory),
            budget.weight_decays,
            max_iterations=budget.max_iterations,
        )
        dev_accuracies = [float((model.predict(dev_ND) == dev_N.numpy()).mean()) for model in models]
        chosen = int(np.argmax(dev_accuracies))
        results.append(
            score_probe(source, splits, layer, inventory, models[chosen], dev_accuracies[chosen], len(train_N), budget)
        )
        if progress is not None:
            progress(number + 1, len(layers))
    return results


def best_on_dev(results: Sequence[PhoneProbe]) -> PhoneProbe:
    """Return the layer with the highest development accuracy (the lowest layer among equals)."""
    return max(results, key=lambda result: (result.dev_accuracy, -result.layer))


def gather_frames(
    source: FeatureSource,
    cuts: Sequence[Any],
    layer: int,
    inventory: Inventory,
    max_frames: int,
    keep_silence: bool,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labelled frames N×D (float16 or float32 as stored) and labels N: all of them, or a uniform sample of `max_frames`.

    Which frames are sampled depends on the seed and the frame rate only, so layers of one source see the same frames.
    """
    rows: list[Array] = []
    labels: list[Array] = []
    for cut in cuts:
        values_SD = source.features(cut)[layer]
        labels_S = frame_labels(cut, frame_centers(source, len(values_SD)), inventory, keep_silence=keep_silence)
        labels.append(labels_S[labels_S >= 0])
        rows.append(np.asarray(values_SD)[labels_S >= 0])
    total = sum(len(part) for part in labels)
    if total == 0:
        raise DataError(
            f"none of the {len(cuts)} cuts has a frame with a phone label; usually because the corpus has no phone "
            "alignment; make one with espeak-ng and the forced aligner, or use a corpus with a CTM or TextGrid"
        )
    keep_N = np.ones(total, dtype=bool)
    if total > max_frames:
        order = torch.randperm(total, generator=generator(seed, "probe frames", total))
        keep_N[order[max_frames:].numpy()] = False
    ends = np.cumsum([len(part) for part in labels])
    parts = [row[keep] for row, keep in zip(rows, np.split(keep_N, ends[:-1]), strict=True) if len(row)]
    return torch.from_numpy(np.concatenate(parts)), torch.from_numpy(np.concatenate(labels)[keep_N])


def score_probe(
    source: FeatureSource,
    splits: ProbeSplits,
    layer: int,
    inventory: Inventory,
    model: FrameClassifier,
    dev_accuracy: float,
    num_train_frames: int,
    budget: SearchBudget,
) -> PhoneProbe:
    """Return a fitted classifier's figures on the test split."""
    correct, total = [], []
    hits_C = np.zeros(len(inventory))
    counts_C = np.zeros(len(inventory))
    for cut in splits.test:
        values_SD = source.features(cut)[layer]
        labels_S = frame_labels(cut, frame_centers(source, len(values_SD)), inventory, keep_silence=budget.keep_silence)
        counted_S = (labels_S >= 0) | (labels_S == UNKNOWN)
        if not counted_S.any():
            correct.append(0)
            total.append(0)
            continue
        hit_S = model.predict(torch.from_numpy(np.asarray(values_SD)[counted_S])) == labels_S[counted_S]
        known_S = labels_S[counted_S] >= 0
        np.add.at(counts_C, labels_S[counted_S][known_S], 1)
        np.add.at(hits_C, labels_S[counted_S][known_S], hit_S[known_S])
        correct.append(int(hit_S.sum()))
        total.append(int(counted_S.sum()))
    if sum(total) == 0:
        raise DataError("no frame of the test split has a phone label; usually because its cuts have no alignment")
    seen_C = counts_C > 0
    recalls_C = hits_C[seen_C] / counts_C[seen_C]
    return PhoneProbe(
        source=source.name,
        layer=layer,
        accuracy=sum(correct) / sum(total),
        macro_accuracy=float(recalls_C.mean()) if seen_C.any() else 0.0,
        dev_accuracy=dev_accuracy,
        correct_B=np.array(correct),
        total_B=np.array(total),
        ids=[cut.id for cut in splits.test],
        speakers=[known_speaker(cut) for cut in splits.test],
        weight_decay=model.weight_decay,
        is_converged=model.is_converged,
        num_train_frames=num_train_frames,
        num_phones=len(inventory),
        labels=alignment_kind(splits.test),
        budget=budget,
        recalls=dict(zip(np.array(inventory.phones)[seen_C].tolist(), recalls_C.tolist(), strict=True)),
    )


def known_speaker(cut: Any) -> str | None:
    """Return the speaker of a cut, None where the corpus does not tell."""
    return next((str(s.speaker) for s in cut.supervisions if s.speaker), None)


def speaker_of(cut: Any) -> str:
    """Return what to keep on one side of a split: the speaker of a cut, its recording where no speaker is known."""
    return known_speaker(cut) or str(cut.recording_id if cut.has_recording else cut.id)
