"""The cells of an ABX task: which tokens meet, their distances, and the error of each cell.

Work is done by unit: the tokens of one context and speaker (within), or of one context and two speakers (across). A unit's
distances are computed once and serve every cell in it, as a, b and x in turn.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isogloss.core.rng import derive_seed
from isogloss.evaluation._dtw import dtw
from isogloss.evaluation.bootstrap import MIN_CLUSTERS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

JACKKNIFE_GROUPS = 20
_FLUSH_CELLS = 1 << 22  # frame distances held at once
_TILE_ROWS = 256  # frames of one tile of rows


@dataclass
class Tokens:
    """Tokens sorted by context, speaker and phone; `values_ND` holds their frames end to end."""

    values_ND: Tensor
    first_T: Ints  # first frame
    length_T: Ints
    phone_T: Ints
    context_T: Ints
    speaker_T: Ints
    utterance_T: Ints
    phones: list[str]
    contexts: list[tuple[str, str]]
    speakers: list[str]
    utterances: list[str]

    @classmethod
    def build(
        cls,
        values_ND: Tensor,
        lengths: Sequence[int],
        phones: Sequence[str],
        contexts: Sequence[tuple[str, str]],
        speakers: Sequence[str],
        utterances: Sequence[str],
    ) -> Self:
        """Sort tokens whose frames are given end to end."""
        phone_T, phone_names = _codes(phones)
        context_T, context_names = _codes(contexts)
        speaker_T, speaker_names = _codes(speakers)
        utterance_T, utterance_names = _codes(utterances)
        length_T = np.asarray(lengths, np.int64)
        first_T = np.cumsum(length_T) - length_T
        order = np.lexsort((first_T, phone_T, speaker_T, context_T))
        length_T = length_T[order]
        new_first_T = np.cumsum(length_T) - length_T
        frame_N = np.repeat(first_T[order] - new_first_T, length_T) + np.arange(int(length_T.sum()))
        return cls(
            values_ND[torch.from_numpy(frame_N)],
            new_first_T,
            length_T,
            phone_T[order],
            context_T[order],
            speaker_T[order],
            utterance_T[order],
            phone_names,
            context_names,
            speaker_names,
            utterance_names,
        )


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


@dataclass
class _Unit:
    """Tokens `rows` against tokens `cols`; the phones that are x among the columns, and among the rows (across only)."""

    rows: slice
    cols: slice
    x_in_cols: Ints
    x_in_rows: Ints
    distances: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def is_within(self) -> bool:
        return self.rows == self.cols


def score(tokens: Tokens, *, across: bool, distance: str, max_x_speakers: int | None, seed: int) -> Cells:
    """Return the error of every cell: D = mean[1(d(a,x) < d(b,x)) + ½·1(=)] over a ≠ x and b, error 1 − D."""
    units = list(_units_across(tokens, max_x_speakers, seed) if across else _units_within(tokens))
    scored_speakers = {int(tokens.speaker_T[s.start]) for unit in units for s in (unit.rows, unit.cols)}
    weights_GT = np.ones((1, len(tokens.first_T)))
    utterances = np.unique(tokens.utterance_T)
    if len(scored_speakers) < MIN_CLUSTERS and len(utterances) > 1:
        weights_GT = np.concatenate([weights_GT, _leave_out_weights(tokens, utterances)])
    parts: list[tuple[Any, ...]] = []
    for unit in _with_distances(tokens, units, distance):
        parts += _score_unit(tokens, unit, unit.rows, unit.cols, unit.distances, unit.x_in_cols, weights_GT)
        parts += _score_unit(tokens, unit, unit.cols, unit.rows, unit.distances.T, unit.x_in_rows, weights_GT)
        unit.distances = np.zeros((0, 0), np.float32)
    if not parts:
        empty = np.zeros(0, np.int64)
        columns: list[Any] = [np.zeros((0, len(weights_GT))), *[empty] * 6]
    else:
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    errors_CG, *rest = columns
    return Cells(
        errors_CG[:, 0],
        *rest,
        phones=tokens.phones,
        contexts=tokens.contexts,
        speakers=tokens.speakers,
        num_utterances=len(utterances),
        leave_out_CG=errors_CG[:, 1:] if len(weights_GT) > 1 else None,
    )


def _units_within(tokens: Tokens) -> Iterator[_Unit]:
    none = np.zeros(0, np.int64)
    for run in _runs(tokens.context_T, tokens.speaker_T):
        phones, counts = np.unique(tokens.phone_T[run], return_counts=True)
        repeated = phones[counts > 1]
        if len(phones) > 1 and len(repeated):
            yield _Unit(run, run, repeated, none)


def _units_across(tokens: Tokens, max_x_speakers: int | None, seed: int) -> Iterator[_Unit]:
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
            yield _Unit(runs[index], runs[other], np.asarray(forth, np.int64), np.asarray(back, np.int64))


def _with_distances(tokens: Tokens, units: Sequence[_Unit], distance: str) -> Iterator[_Unit]:
    """Yield the units with their distances; as many together as fit, so that small ones share the batches of the DTW."""
    waiting: list[_Unit] = []
    batch = _PairBatch(tokens, distance)
    for unit in units:
        for _ in batch.add(unit):
            yield from waiting  # all of them are complete: the unit at hand is not among them yet
            waiting = []
        waiting.append(unit)
    batch.flush()
    yield from waiting


class _PairBatch:
    """Frame distances of several units in one flat buffer, and the pairs of tokens to be warped in it."""

    def __init__(self, tokens: Tokens, distance: str) -> None:
        self.tokens = tokens
        self.distance = distance
        self.buffer = torch.empty(_FLUSH_CELLS)
        self._clear()

    def _clear(self) -> None:
        self.size = 0
        self.pairs: list[tuple[_Unit, Ints, Ints, Ints, Ints]] = []  # unit, i, j, start, row stride

    def add(self, unit: _Unit) -> Iterator[None]:
        """Add a unit's pairs; yields whenever the buffer was full and its pairs are done."""
        num_rows, num_cols = (s.stop - s.start for s in (unit.rows, unit.cols))
        unit.distances = np.full((num_rows, num_cols), np.nan, np.float32)
        is_needed = _needed(self.tokens, unit)
        first, length = self.tokens.first_T, self.tokens.length_T
        col_end = int(first[unit.cols.stop - 1] + length[unit.cols.stop - 1])
        begin = 0
        while begin < num_rows:
            # A tile is some rows against all columns; within one speaker the matrix is symmetric, and columns before the
            # tile's rows are not needed.
            skipped = begin if unit.is_within else 0
            row_start, col_start = int(first[unit.rows.start + begin]), int(first[unit.cols.start + skipped])
            width = col_end - col_start
            end = begin + 1
            frames = int(length[unit.rows.start + begin])
            while end < num_rows and frames + length[unit.rows.start + end] <= _TILE_ROWS:
                frames += int(length[unit.rows.start + end])
                end += 1
            i, j = np.nonzero(is_needed[begin:end, skipped:])
            if len(i):
                if self.size + frames * width > len(self.buffer):
                    self.flush()
                    yield
                    if frames * width > len(self.buffer):
                        self.buffer = torch.empty(frames * width)
                i, j = i + begin, j + skipped
                start = self.size + (first[unit.rows.start + i] - row_start) * width
                start += first[unit.cols.start + j] - col_start
                self.pairs.append((unit, i, j, start, np.full(len(i), width)))
                self._fill(slice(row_start, row_start + frames), slice(col_start, col_end))
            begin = end

    def _fill(self, row: slice, col: slice) -> None:
        rows, cols = self.tokens.values_ND[row], self.tokens.values_ND[col]
        tile = self.buffer[self.size : self.size + len(rows) * len(cols)].view(len(rows), len(cols))
        self.size += tile.numel()
        if self.distance == "euclidean":
            # Without the matrix product's cancellation: equal frames are at distance zero exactly.
            tile.copy_(torch.cdist(rows, cols, compute_mode="donot_use_mm_for_euclid_dist"))
        else:
            torch.mm(rows, cols.T, out=tile)

    def flush(self) -> None:
        """Warp all pairs, give their distances to their units, and empty the buffer."""
        if not self.pairs:
            return
        costs = self.buffer[: self.size]
        if self.distance == "angular":
            # Closer than 1e-6 to one, fp32 cannot tell a cosine from a rounded one; ties must stay ties.
            costs.clamp_(-1, 1).masked_fill_(costs > 1 - 1e-6, 1.0).acos_().div_(torch.pi)
        lengths = self.tokens.length_T
        shape = np.concatenate(
            [np.stack([lengths[u.rows.start + i], lengths[u.cols.start + j]], 1) for u, i, j, _, _ in self.pairs]
        )
        start = np.concatenate([start for *_, start, _ in self.pairs])
        stride = np.stack([np.concatenate([width for *_, width in self.pairs]), np.ones(len(start), np.int64)], 1)
        # The shorter token first: with equally cheap paths the distance might else depend on who is a and who is x.
        is_tall = shape[:, 0] > shape[:, 1]
        shape[is_tall] = shape[is_tall, ::-1]
        stride[is_tall] = stride[is_tall, ::-1]
        distances = dtw(costs.numpy(), start, stride, shape, num_threads=torch.get_num_threads())
        done = 0
        for unit, i, j, *_ in self.pairs:
            part = distances[done : done + len(i)]
            unit.distances[i, j] = part
            if unit.is_within:
                unit.distances[j, i] = part
            done += len(i)
        self._clear()


def _needed(tokens: Tokens, unit: _Unit) -> npt.NDArray[np.bool_]:
    row_phone, col_phone = tokens.phone_T[unit.rows], tokens.phone_T[unit.cols]
    if unit.is_within:
        is_x = np.isin(row_phone, unit.x_in_cols)
        return np.triu(is_x[:, None] | is_x[None, :], k=1)
    return np.isin(row_phone, unit.x_in_rows)[:, None] | np.isin(col_phone, unit.x_in_cols)[None, :]


def _score_unit(
    tokens: Tokens,
    unit: _Unit,
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
    return (group[tokens.utterance_T][None] != np.arange(num_groups)[:, None]).astype(float)


def _speaker(tokens: Tokens, run: slice) -> str:
    return tokens.speakers[tokens.speaker_T[run.start]]


def _runs(*keys_T: Ints) -> Iterator[slice]:
    """Yield the runs of tokens in which all keys stay the same."""
    changes = np.zeros(len(keys_T[0]) - 1, bool)
    for key_T in keys_T:
        changes |= np.diff(key_T) != 0
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), len(keys_T[0])]
    for begin, end in itertools.pairwise(borders):
        yield slice(begin, end)


def _codes(names: Sequence[Any]) -> tuple[Ints, list[Any]]:
    known = sorted(set(names))
    place = {name: index for index, name in enumerate(known)}
    return np.fromiter((place[name] for name in names), np.int64, len(names)), known
