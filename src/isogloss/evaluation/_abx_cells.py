"""The cells of an ABX task: which tokens meet, and the error of each cell.

Work is done by unit: the tokens of one context and speaker (within), or of one context and two speakers (across). A unit's
distances are computed once and serve every cell in it, as a, b and x in turn.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isogloss.core.rng import derive_seed
from isogloss.evaluation._abx_distances import Tokens, Unit, with_distances
from isogloss.evaluation.bootstrap import MIN_CLUSTERS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

JACKKNIFE_GROUPS = 20


@dataclass
class Cells:
    """The errors of all cells (C), and with `leave_out_CG` those without each of G groups of utterances (NaN: no triplet)."""

    errors: Floats
    num_triplets: Ints
    phone_a: Ints
    phone_b: Ints
    context: Ints
    speaker: Ints
    speaker_x: Ints
    phones: list[str]
    contexts: list[tuple[str, str]]
    speakers: list[str]
    num_utterances: int
    leave_out_CG: Floats | None = None

    def table(self) -> list[dict[str, Any]]:
        """Return one row per cell."""
        return [
            {
                "phone_a": self.phones[self.phone_a[c]],
                "phone_b": self.phones[self.phone_b[c]],
                "prev": self.contexts[self.context[c]][0],
                "next": self.contexts[self.context[c]][1],
                "speaker": self.speakers[self.speaker[c]],
                "speaker_x": self.speakers[self.speaker_x[c]],
                "error": float(self.errors[c]),
                "num_triplets": int(self.num_triplets[c]),
            }
            for c in range(len(self.errors))
        ]


def score(tokens: Tokens, *, across: bool, distance: str, max_x_speakers: int | None, seed: int) -> Cells:
    """Return the error of every cell: D = mean[1(d(a,x) < d(b,x)) + ½·1(=)] over a ≠ x and b, error 1 − D."""
    units = list(_units_across(tokens, max_x_speakers, seed) if across else _units_within(tokens))
    scored_speakers = {int(tokens.speaker_T[s.start]) for unit in units for s in (unit.rows, unit.cols)}
    weights_GT = np.ones((1, len(tokens.first_T)))
    utterances = np.unique(tokens.utterance_T)
    if len(scored_speakers) < MIN_CLUSTERS and len(utterances) > 1:
        weights_GT = np.concatenate([weights_GT, _leave_out_weights(tokens, utterances)])
    parts: list[tuple[Any, ...]] = []
    for unit in with_distances(tokens, units, distance):
        parts += _score_unit(tokens, unit, unit.rows, unit.cols, unit.distances, unit.x_in_cols, weights_GT)
        parts += _score_unit(tokens, unit, unit.cols, unit.rows, unit.distances.T, unit.x_in_rows, weights_GT)
        unit.distances = np.zeros((0, 0), np.float32)
    parts.append((np.zeros((0, len(weights_GT))), *[np.zeros(0, np.int64)] * 6))  # there may be no cell at all
    columns: list[Any] = [np.concatenate(column) for column in zip(*parts, strict=True)]
    errors_CG, num_triplets, phone_a, phone_b, context, speaker, speaker_x = columns
    return Cells(
        errors=errors_CG[:, 0],
        num_triplets=num_triplets,
        phone_a=phone_a,
        phone_b=phone_b,
        context=context,
        speaker=speaker,
        speaker_x=speaker_x,
        phones=tokens.phones,
        contexts=tokens.contexts,
        speakers=tokens.speakers,
        num_utterances=len(utterances),
        leave_out_CG=errors_CG[:, 1:] if len(weights_GT) > 1 else None,
    )


def _units_within(tokens: Tokens) -> Iterator[Unit]:
    none = np.zeros(0, np.int64)
    for run in _runs(tokens.context_T, tokens.speaker_T):
        phones, counts = np.unique(tokens.phone_T[run], return_counts=True)
        repeated = phones[counts > 1]
        if len(phones) > 1 and len(repeated):
            yield Unit(run, run, repeated, none)


def _units_across(tokens: Tokens, max_x_speakers: int | None, seed: int) -> Iterator[Unit]:
    by_context: dict[int, list[slice]] = defaultdict(list)
    for run in _runs(tokens.context_T, tokens.speaker_T):
        by_context[int(tokens.context_T[run.start])].append(run)
    for context, runs in by_context.items():
        if len(runs) < 2:
            continue
        phones_of = [np.unique(tokens.phone_T[run]) for run in runs]
        speakers_of: dict[int, list[int]] = defaultdict(list)
        for index, phones in enumerate(phones_of):
            for phone in phones.tolist():
                speakers_of[phone].append(index)
        x_phones: dict[tuple[int, int], list[int]] = defaultdict(list)  # (run of a and b, run of x) → phones
        for index, phones in enumerate(phones_of):
            if len(phones) < 2:
                continue  # no b
            for phone in phones.tolist():
                others = [o for o in speakers_of[phone] if o != index]
                if max_x_speakers is not None and len(others) > max_x_speakers:
                    names = (*tokens.contexts[context], tokens.phones[phone], _speaker(tokens, runs[index]))
                    others.sort(key=lambda o: derive_seed("abx x", seed, *names, _speaker(tokens, runs[o])))
                    others = others[:max_x_speakers]
                for other in others:
                    x_phones[index, other].append(phone)
        for index, other in sorted({(min(pair), max(pair)) for pair in x_phones}):
            forth, back = x_phones.get((index, other), []), x_phones.get((other, index), [])
            yield Unit(runs[index], runs[other], np.asarray(forth, np.int64), np.asarray(back, np.int64))


def _score_unit(
    tokens: Tokens,
    unit: Unit,
    ab: slice,
    x: slice,
    distances: npt.NDArray[np.float32],
    x_phones: Ints,
    weights_GT: Floats,
) -> list[tuple[Any, ...]]:
    """Score the cells with a and b among `ab`, x among `x`; `distances` is ab×x, the weights count tokens in or out."""
    parts = []
    phone_ab, phone_x = tokens.phone_T[ab], tokens.phone_T[x]
    phones, starts, counts = np.unique(phone_ab, return_index=True, return_counts=True)
    weights_ab, weights_x = weights_GT[:, ab], weights_GT[:, x]
    weight_b_GH = np.add.reduceat(weights_ab, starts, axis=1)
    for phone in x_phones.tolist():
        at = int(np.searchsorted(phones, phone))
        is_a = slice(int(starts[at]), int(starts[at] + counts[at]))
        is_x = slice(*np.searchsorted(phone_x, [phone, phone + 1]).tolist())
        to_x = distances[:, is_x]
        to_a = to_x[is_a]
        wa, wx = weights_ab[:, is_a], weights_x[:, is_x]
        ways_G1 = wa.sum(1, keepdims=True) * wx.sum(1, keepdims=True)
        num_ways = to_a.size
        if unit.is_within:
            # a is not x: the distance of a token to itself was left NaN, neither nearer nor equal.
            ways_G1 -= (wa * wx).sum(1, keepdims=True)
            num_ways -= len(to_a)
        hits_ABX = (to_a[:, None] < to_x[None]) + 0.5 * (to_a[:, None] == to_x[None])
        hits_GBX = (wa @ hits_ABX.reshape(len(to_a), -1)).reshape(len(wa), *hits_ABX.shape[1:])
        hits_GB = np.einsum("gbx,gx->gb", hits_GBX, wx) * weights_ab
        total_GH = ways_G1 * weight_b_GH
        with np.errstate(invalid="ignore", divide="ignore"):
            error_GH = 1 - np.add.reduceat(hits_GB, starts, axis=1) / total_GH
        others = np.flatnonzero(phones != phone)
        size = len(others)
        parts.append(
            (
                error_GH[:, others].T,
                num_ways * counts[others],
                np.full(size, phone),
                phones[others],
                np.full(size, tokens.context_T[ab.start]),
                np.full(size, tokens.speaker_T[ab.start]),
                np.full(size, tokens.speaker_T[x.start]),
            )
        )
    return parts


def _leave_out_weights(tokens: Tokens, utterances: Ints) -> Floats:
    """Return weights that leave out one of up to twenty groups of utterances each; the groups depend on the names alone."""
    num_groups = min(JACKKNIFE_GROUPS, len(utterances))
    order = sorted(utterances.tolist(), key=lambda u: derive_seed("jackknife", tokens.utterances[u]))
    group = np.zeros(len(tokens.utterances), np.int64)
    group[order] = np.arange(len(order)) % num_groups
    weights_GT: Floats = (group[tokens.utterance_T][None] != np.arange(num_groups)[:, None]).astype(float)
    return weights_GT


def _speaker(tokens: Tokens, run: slice) -> str:
    return tokens.speakers[int(tokens.speaker_T[run.start])]


def _runs(*keys_T: Ints) -> Iterator[slice]:
    """Yield the runs of tokens in which all keys stay the same."""
    changes = np.zeros(len(keys_T[0]) - 1, bool)
    for key_T in keys_T:
        changes |= np.diff(key_T) != 0
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), len(keys_T[0])]
    for begin, end in itertools.pairwise(borders):
        yield slice(begin, end)
