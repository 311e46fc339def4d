"""Dynamic time warping of many small matrices at once: vectorised over pairs, one antidiagonal after the other.

The matrices are windows of a few large ones (frames of all tokens against frames of all tokens), so a pair is a start and
two strides into a flat buffer. A partial path is one 64-bit integer, its cost above its number of steps, so that the best
predecessor, its cost and its steps are found by two minima.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_MAX_CELLS = 1 << 17  # of one padded batch: stays in the cache
_CHEAP_PADDING = 1 << 14  # less than a batch's fixed cost

# A path: 48 bits of cost (in 2⁻³² of the largest frame distance), 2 of preference among predecessors, 13 of steps.
_COST = 15
_PREFERENCE = 13
_STEPS = (1 << _PREFERENCE) - 1
MAX_FRAMES = 1 << (_PREFERENCE - 1)  # of one token: a path has at most the frames of both, less one
_NO_PREFERENCE = np.int64(~(3 << _PREFERENCE))
_LEFT, _UP = np.int64(1 << _PREFERENCE), np.int64(2 << _PREFERENCE)
_UNREACHED = np.int64(1 << 62)


def dtw(costs: Floats, start_P: Index, stride_P2: Index, shape_P2: Index, num_threads: int = 1) -> Floats:
    """Return the mean cost along the best warping path of P matrices.

    Matrix p has `shape_P2[p]` rows and columns; its cell (i, j) is `costs[start + i·stride0 + j·stride1]`, not negative. The
    total cost of the cheapest path is divided by the number of its steps; among equally cheap predecessors the diagonal
    comes first, then the left one, then the upper one. Rows and columns are at most `MAX_FRAMES`.
    """
    distances_P = np.empty(len(start_P), np.float32)
    largest = float(costs.max(initial=0.0))
    # A power of two, so that scaling rounds nothing.
    scale = 2.0 ** np.ceil(np.log2(largest)) if largest > 0 else 1.0

    def run(chosen: Index) -> None:
        distances_P[chosen] = _dtw_batch(costs, start_P[chosen], stride_P2[chosen], shape_P2[chosen], scale)

    if num_threads == 1:
        for chosen in _batches(shape_P2):
            run(chosen)
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(run, _batches(shape_P2)))
    return distances_P


def _batches(shape_P2: Index) -> Iterator[Index]:
    """Yield the pairs of each batch: of about one shape, since all matrices of a batch are padded to the largest."""
    code_P = shape_P2[:, 1] * (_STEPS + 1) + shape_P2[:, 0]
    order = np.argsort(code_P, kind="stable")
    codes, firsts, counts = np.unique(code_P[order], return_index=True, return_counts=True)
    begin = end = rows = cols = useful = 0
    for code, first, count in zip(codes.tolist(), firsts.tolist(), counts.tolist(), strict=True):
        c, r = divmod(code, _STEPS + 1)
        new_rows, new_cols = max(rows, r), max(cols, c)
        padded = new_rows * new_cols * (end - begin + count)
        wasted = padded - useful - r * c * count
        is_full = padded > _MAX_CELLS or wasted > max(_CHEAP_PADDING, useful // 8)
        if end > begin and is_full:
            yield from _pieces(order[begin:end], rows * cols)
            begin, new_rows, new_cols, useful = end, r, c, 0
        end, rows, cols = first + count, new_rows, new_cols
        useful += r * c * count
    yield from _pieces(order[begin:end], rows * cols)


def _pieces(chosen: Index, cells: int) -> Iterator[Index]:
    size = max(1, _MAX_CELLS // max(cells, 1))
    for begin in range(0, len(chosen), size):
        yield chosen[begin : begin + size]


def _dtw_batch(costs: Floats, start_P: Index, stride_P2: Index, shape_P2: Index, scale: float) -> Floats:
    # Pairs in the order in which their last cell is reached, so that each antidiagonal finishes a contiguous run of them.
    last_P = shape_P2.sum(1) - 2
    order = np.argsort(last_P, kind="stable")
    start_P, stride_P2, shape_P2 = start_P[order], stride_P2[order], shape_P2[order]
    num_rows, num_cols = (int(n) for n in shape_P2.max(0))
    finished = np.searchsorted(last_P[order], np.arange(num_rows + num_cols))
    step_XP = _gather(costs, start_P, stride_P2, num_rows, num_cols, scale).reshape(num_rows * num_cols, -1)

    # Three antidiagonals: this one, the one before, and the one before that; row i is kept at i + 1.
    now, before, earlier = np.full((3, num_rows + 1, len(order)), _UNREACHED)
    best_RP, up_RP = np.empty((2, num_rows, len(order)), np.int64)
    end_P = np.empty(len(order), np.int64)
    for d in range(num_rows + num_cols - 1):
        low, high = max(0, d - num_cols + 1), min(num_rows - 1, d)
        first_cell, last_cell = d + low * (num_cols - 1), d + high * (num_cols - 1)
        step = step_XP[first_cell : last_cell + 1 : max(num_cols - 1, 1)]
        here, above = slice(low + 1, high + 2), slice(low, high + 1)
        if d == 0:
            now[here] = step
        else:
            best, up = best_RP[: high - low + 1], up_RP[: high - low + 1]
            np.add(before[here], _LEFT, out=best)
            np.add(before[above], _UP, out=up)
            np.minimum(best, up, out=best)
            np.minimum(best, earlier[above], out=best)
            np.bitwise_and(best, _NO_PREFERENCE, out=best)
            np.add(best, step, out=now[here])
        done = slice(int(finished[d]), int(finished[d + 1]))
        if done.stop > done.start:
            end_P[done] = now[shape_P2[done, 0], np.arange(done.start, done.stop)]
        now, before, earlier = earlier, now, before
    distances_P = np.empty(len(order), np.float32)
    distances_P[order] = (end_P >> _COST) * (scale / 2**32) / (end_P & _STEPS)
    return distances_P


def _gather(costs: Floats, start_P: Index, stride_P2: Index, rows: int, cols: int, scale: float) -> Index:
    """Return the cells of all windows, R×C×P, each as a path of one step."""
    row_R1P = start_P + np.arange(rows)[:, None, None] * stride_P2[:, 0]
    col_CP = np.arange(cols)[:, None] * stride_P2[:, 1]
    # Cells beyond a smaller matrix hold whatever lies there: no cell of the matrix itself depends on them.
    cell_RCP = costs.take(row_R1P + col_CP, mode="clip")
    cell_RCP *= np.float32(2.0**32 / scale)
    paths_RCP: Index = cell_RCP.astype(np.int64)
    paths_RCP <<= _COST
    paths_RCP += 1
    return paths_RCP
