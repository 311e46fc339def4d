"""Distances between the tokens that an ABX task compares: once per pair, many units at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isogloss.evaluation._dtw import dtw

Ints = npt.NDArray[np.int64]

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
class Unit:
    """Tokens `rows` against tokens `cols`; the phones that are x among the columns, and among the rows (across only)."""

    rows: slice
    cols: slice
    x_in_cols: Ints
    x_in_rows: Ints
    distances: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def is_within(self) -> bool:
        return self.rows == self.cols


def with_distances(tokens: Tokens, units: Sequence[Unit], distance: str) -> Iterator[Unit]:
    """Yield the units with their distances; as many together as fit, so that small ones share the batches of the DTW."""
    waiting: list[Unit] = []
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
        self.pairs: list[tuple[Unit, Ints, Ints, Ints, Ints]] = []  # unit, i, j, start, row stride

    def add(self, unit: Unit) -> Iterator[None]:
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


def _needed(tokens: Tokens, unit: Unit) -> npt.NDArray[np.bool_]:
    row_phone, col_phone = tokens.phone_T[unit.rows], tokens.phone_T[unit.cols]
    if unit.is_within:
        is_x = np.isin(row_phone, unit.x_in_cols)
        return np.triu(is_x[:, None] | is_x[None, :], k=1)
    return np.isin(row_phone, unit.x_in_rows)[:, None] | np.isin(col_phone, unit.x_in_cols)[None, :]


def _codes(names: Sequence[Any]) -> tuple[Ints, list[Any]]:
    known = sorted(set(names))
    place = {name: index for index, name in enumerate(known)}
    return np.fromiter((place[name] for name in names), np.int64, len(names)), known
