"""The best path through a left-to-right chain of symbols: forced alignment, all utterances of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isogloss.core.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Chain:
    """States that an utterance passes in order: each emits its symbol for one frame or more, optional ones may be skipped.

    No two neighbours may both be optional.
    """

    symbols: tuple[int, ...]
    is_optional: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.symbols) != len(self.is_optional) or not self.symbols:
            raise ValueError(f"a chain needs as many flags as symbols and at least one, but is {self}")
        if any(a and b for a, b in zip(self.is_optional, self.is_optional[1:], strict=False)):
            raise ValueError(f"two neighbours of a chain must not both be optional, but are in {self}")


def ctc_chain(targets: Sequence[int], blank: int) -> Chain:
    """Return CTC's chain: a blank around and between the targets, needed only between equal neighbours."""
    symbols, optional = [blank], [True]
    for index, target in enumerate(targets):
        symbols.append(target)
        optional.append(False)
        symbols.append(blank)
        optional.append(index + 1 == len(targets) or targets[index + 1] != target)
    if not targets:
        optional = [False]
    return Chain(tuple(symbols), tuple(optional))


def viterbi_align(scores: Sequence[Array], chains: Sequence[Chain], batch_cells: int = 20_000_000) -> list[Array]:
    """Return the best state of every frame (S integers per utterance) given log scores S×C of the symbols.

    The path begins in the first state, or the second where the first is optional, and ends likewise. Raises `DataError`
    for an utterance that has fewer frames than states it must pass.
    """
    order = sorted(range(len(scores)), key=lambda i: (len(scores[i]), len(chains[i].symbols)))
    paths: list[Array] = [np.zeros(0, np.int64)] * len(scores)
    batch: list[int] = []
    for index in order:
        needed = sum(not optional for optional in chains[index].is_optional)
        if len(scores[index]) < needed:
            raise DataError(
                f"utterance {index} has {len(scores[index])} frames, but its {needed} symbols need one each; usually "
                "because its text is of another recording; leave it out"
            )
        widest = max(len(chains[i].symbols) for i in [*batch, index])
        if batch and len(scores[index]) * widest * (len(batch) + 1) > batch_cells:
            _align(batch, scores, chains, paths)
            batch = []
        batch.append(index)
    if batch:
        _align(batch, scores, chains, paths)
    return paths


def _align(batch: Sequence[int], scores: Sequence[Array], chains: Sequence[Chain], paths: list[Array]) -> None:
    num_frames = np.array([len(scores[i]) for i in batch])
    num_states = np.array([len(chains[i].symbols) for i in batch])
    B, S, K = len(batch), int(num_frames.max()), int(num_states.max())
    never = np.float32(-1e30)  # finite, so that no difference of two is undefined
    symbols_BK = np.zeros((B, K), np.int64)
    skip_BK = np.full((B, K), never, np.float32)  # 0 where state k may follow state k − 2
    for row, index in enumerate(batch):
        chain = chains[index]
        symbols_BK[row, : len(chain.symbols)] = chain.symbols
        for k in range(2, len(chain.symbols)):
            if chain.is_optional[k - 1]:
                skip_BK[row, k] = 0.0
    best_BK = np.full((B, K), never, np.float32)
    best_BK[:, 0] = 0.0
    for row, index in enumerate(batch):
        if len(chains[index].symbols) > 1 and chains[index].is_optional[0]:
            best_BK[row, 1] = 0.0
    emitted_SBK = np.full((S, B, K), never, np.float32)
    for row, index in enumerate(batch):
        n = num_states[row]
        emitted_SBK[: num_frames[row], row, :n] = scores[index][:, symbols_BK[row, :n]]
    back_SBK = np.zeros((S, B, K), np.uint8)
    for frame in range(S):
        if frame > 0:
            one_BK = np.full((B, K), never, np.float32)
            one_BK[:, 1:] = best_BK[:, :-1]
            two_BK = np.full((B, K), never, np.float32)
            two_BK[:, 2:] = best_BK[:, :-2] + skip_BK[:, 2:]
            choices = np.stack([best_BK, one_BK, two_BK])
            back_BK = choices.argmax(0)
            back_SBK[frame] = back_BK
            arrived_BK = np.take_along_axis(choices, back_BK[None], 0)[0]
        else:
            arrived_BK = best_BK
        alive_B1 = (frame < num_frames)[:, None]
        best_BK = np.where(alive_B1, np.maximum(arrived_BK + emitted_SBK[frame], never), best_BK)
    for row, index in enumerate(batch):
        state = num_states[row] - 1
        if state > 0 and chains[index].is_optional[state] and best_BK[row, state - 1] > best_BK[row, state]:
            state -= 1
        path = np.empty(num_frames[row], np.int64)
        for frame in range(num_frames[row] - 1, -1, -1):
            path[frame] = state
            state -= back_SBK[frame, row, state]
        paths[index] = path
