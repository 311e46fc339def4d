"""Few-shot language identification: how accuracy grows with labelled utterances per language, over draws and seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed, generator
from isogloss.evaluation.bootstrap import Estimate, hierarchical
from isogloss.evaluation.lid import HeldOut, LidSettings, Pooled, choose_layer, folds_of
from isogloss.evaluation.metrics import macro_accuracy

Array = npt.NDArray[Any]
SHOTS = (1, 5, 10, 25, 50, 100)


@dataclass(frozen=True)
class FewShotSettings:
    """The protocol: nothing here is searched.

    Every one of `draws` nested draws orders a language's training utterances, its speakers in turn, and N shots are the first
    N of that order; from each, `seeds` linear softmax heads are trained from different initial weights for the same number of
    `updates` on all shots at once (Adam, `lr`, `weight_decay`). A language with fewer utterances gives what it has.
    """

    shots: tuple[int, ...] = SHOTS
    draws: int = 5
    seeds: int = 3
    updates: int = 300
    lr: float = 0.01
    weight_decay: float = 0.01


@dataclass(frozen=True)
class FewShotCurve:
    """Recall counts of every model: `counts_NPSIK` for N numbers of shots, P draws, S seeds, I test utterances."""

    source: str
    layer: int
    held_out: HeldOut
    shots: tuple[int, ...]
    counts_NPSIK: Array
    ids: list[str]
    languages: list[str]
    speakers: list[str | None]
    fewest: dict[str, int]  # training utterances of the languages that have fewer than the most shots
    num_layers_tried: int = 1

    def accuracy(self, index: int) -> Estimate:
        """Return the macro-accuracy at a number of shots, over draws, seeds and speakers."""
        return hierarchical(self.counts_NPSIK[index], macro_accuracy, clusters=self.speakers)

    def area(self) -> Estimate:
        """Return the area under accuracy over log shots, divided by its width: the mean accuracy of the curve."""
        return hierarchical(_side_by_side(self.counts_NPSIK), _area_of(self.shots, 1), clusters=self.speakers)


def few_shot(
    pooled: Pooled,
    *,
    layer: int | None = None,
    held_out: HeldOut = "speaker",
    settings: FewShotSettings | None = None,
    lid: LidSettings | None = None,
    seed: int = 0,
    progress: Callable[[float, float], None] | None = None,
) -> FewShotCurve:
    """Train heads on N shots of one layer's pooled features and test them on held-out speakers or sources.

    Of the folds of `probe_language` the one that tests most languages is the test. The layer, where it is not given, is the
    best one of a cross-validation with all labels inside the training part. Draws and heads depend on the ids and `seed`
    alone: two encoders get the same shots. Raises `DataError` where nothing can be held out.
    """
    settings = settings or FewShotSettings()
    folds = folds_of(pooled, held_out, lid or LidSettings())
    train, test = max(folds, key=lambda fold: len({pooled.languages[i] for i in fold[1]}))
    if len(tested := {pooled.languages[i] for i in test}) < 2:
        raise DataError(
            f"few-shot language identification tests one fold of held-out {held_out}s, but none of them has two languages (only "
            f"{tested.pop()}); usually because most languages have one {held_out}"
        )
    num_layers_tried = len(pooled.values) if layer is None else 1
    if layer is None:
        layer = choose_layer(pooled, train, held_out, lid or LidSettings())
    classes = sorted({pooled.languages[i] for i in train})
    values_BD = torch.from_numpy(pooled.values[layer]).float()
    known_ND = values_BD[torch.from_numpy(train)]  # labels are few, audio is not: it sets mean and scale
    values_BD = (values_BD - known_ND.mean(0)) / known_ND.std(0, unbiased=False).clamp(min=1e-6)
    truth = [pooled.languages[i] for i in test]
    counts = []
    total = len(settings.shots) * settings.draws * settings.seeds
    done = 0
    orders = [nested_draw(pooled, train.tolist(), derive_seed("shots", seed, draw)) for draw in range(settings.draws)]
    for shots in settings.shots:
        per_draw = []
        for order in orders:
            rows = [i for language in classes for i in order[language][:shots]]
            labels_N = torch.tensor([classes.index(pooled.languages[i]) for i in rows])
            per_seed = []
            for head in range(settings.seeds):
                predicted = _fit(values_BD, rows, labels_N, len(classes), test, settings, head, seed)
                per_seed.append(_recalls(truth, predicted, classes))
                done += 1
                if progress is not None:
                    progress(done, total)
            per_draw.append(per_seed)
        counts.append(per_draw)
    available = {language: len(orders[0][language]) for language in classes}
    return FewShotCurve(
        source=pooled.source,
        layer=layer,
        held_out=held_out,
        shots=settings.shots,
        counts_NPSIK=np.asarray(counts, float),
        ids=[pooled.ids[i] for i in test],
        languages=truth,
        speakers=[None if (s := pooled.speakers[i]) in pooled.unknown_speakers else s for i in test],
        fewest={language: n for language, n in available.items() if n < max(settings.shots)},
        num_layers_tried=num_layers_tried,
    )


def nested_draw(pooled: Pooled, rows: Sequence[int], seed: int) -> dict[str, list[int]]:
    """Return each language's rows in the order in which they are drawn: its speakers in turn, in a random order."""
    voices: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i in sorted(rows, key=lambda i: derive_seed(seed, pooled.ids[i])):
        voices[pooled.languages[i]][pooled.speakers[i]].append(i)
    order = {}
    for language, own in voices.items():
        queues = [own[s] for s in sorted(own, key=lambda s: derive_seed(seed, "speaker", s))]
        longest = max(map(len, queues))
        order[language] = [queue[k] for k in range(longest) for queue in queues if k < len(queue)]
    return order


def area_difference(ours: FewShotCurve, theirs: FewShotCurve) -> Estimate:
    """Return the paired difference of the areas: the same draws, seeds and test utterances for both."""
    _check_same(ours, theirs)
    both = np.concatenate([_side_by_side(ours.counts_NPSIK), _side_by_side(theirs.counts_NPSIK)], axis=-1)
    return hierarchical(both, _area_of(ours.shots, 2), clusters=ours.speakers)


def accuracy_difference(ours: FewShotCurve, theirs: FewShotCurve, index: int) -> Estimate:
    """Return the paired difference of the macro-accuracies at a number of shots."""
    _check_same(ours, theirs)
    width = ours.counts_NPSIK.shape[-1]
    both = np.concatenate([ours.counts_NPSIK[index], theirs.counts_NPSIK[index]], axis=-1)
    return hierarchical(
        both, lambda sums: macro_accuracy(sums[..., :width]) - macro_accuracy(sums[..., width:]), clusters=ours.speakers
    )


def equivalent_shots(ours: FewShotCurve, theirs: FewShotCurve, index: int) -> float:
    """Return the fewest shots with which the other system has our accuracy at a number of shots, read off its curve on a log scale.

    Infinity where it never reaches it, and 0 where its first number of shots is already better.
    """
    target = ours.accuracy(index).value
    curve = np.maximum.accumulate([theirs.accuracy(i).value for i in range(len(theirs.shots))])
    if target > curve[-1]:
        return float("inf")
    if target < curve[0]:
        return 0.0
    # Where more shots bring nothing more, the first of them are enough: `np.interp` alone would take the last.
    rises = np.concatenate([[True], np.diff(curve) > 0])
    return float(np.exp(np.interp(target, curve[rises], np.log(theirs.shots)[rises])))


def _fit(
    values_BD: Tensor,
    rows: Sequence[int],
    labels_N: Tensor,
    num_classes: int,
    test: Array,
    settings: FewShotSettings,
    head: int,
    seed: int,
) -> Array:
    """Return the predicted class of each test row."""
    train_ND = values_BD[list(rows)]
    draws = generator("head", seed, head)
    width = train_ND.shape[1]
    weight_DC = (0.1 * torch.randn(width, num_classes, generator=draws) / width**0.5).requires_grad_()
    bias_C = torch.zeros(num_classes, requires_grad=True)
    weights_C = 1.0 / torch.bincount(labels_N, minlength=num_classes).clamp(min=1)
    optimizer = torch.optim.AdamW([weight_DC, bias_C], lr=settings.lr, weight_decay=settings.weight_decay)
    for _ in range(settings.updates):
        optimizer.zero_grad()
        F.cross_entropy(train_ND @ weight_DC + bias_C, labels_N, weight=weights_C).backward()
        optimizer.step()
    with torch.no_grad():
        scores = values_BD[torch.from_numpy(test)] @ weight_DC + bias_C
    predicted: Array = scores.argmax(1).numpy()
    return predicted


def _recalls(truth: Sequence[str], predicted: Array, classes: Sequence[str]) -> Array:
    """Return hits and references of each class side by side, I×2C, for `macro_accuracy`; every model has the same classes."""
    is_true = np.array([[name == language for name in classes] for language in truth], float)
    is_hit = np.array([classes[int(c)] == language for c, language in zip(predicted, truth, strict=True)])
    return np.concatenate([is_true * is_hit[:, None], is_true], axis=1)


def _side_by_side(counts_NPSIK: Array) -> Array:
    """Put the numbers of shots side by side: P×S×I×(N·K)."""
    return np.concatenate(list(counts_NPSIK), axis=-1)


def _area_of(shots: Sequence[int], systems: int) -> Callable[[Array], Array]:
    """Return the statistic: the area of the first system's curve, minus that of the second where there are two."""
    log_shots = np.log(np.asarray(shots, float))

    def area(sums: Array) -> Array:
        parts = np.split(sums, len(shots), axis=-1)
        curve = np.stack([macro_accuracy(part) for part in parts], axis=-1)
        if len(shots) == 1:
            return np.asarray(curve[..., 0])
        return np.asarray(np.trapezoid(curve, log_shots, axis=-1) / (log_shots[-1] - log_shots[0]))

    def statistic(sums: Array) -> Array:
        areas = [area(part) for part in np.split(sums, systems, axis=-1)]
        return areas[0] if systems == 1 else np.asarray(areas[0] - areas[1])

    return statistic


def _check_same(ours: FewShotCurve, theirs: FewShotCurve) -> None:
    if ours.ids != theirs.ids or ours.shots != theirs.shots or ours.counts_NPSIK.shape != theirs.counts_NPSIK.shape:
        raise DataError(
            "two few-shot curves are compared on the same shots and test utterances only; measure both alike"
        )
