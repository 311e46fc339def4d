"""Dynamic time warping of many small matrices at once: vectorised over pairs, one antidiagonal after the other.

The matrices are windows of a few large ones (frames of all tokens against frames of all tokens), so a pair is a start and
two strides into a flat buffer and nothing is copied per pair but its own window.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Index = npt.NDArray[np.int64]

_MAX_CELLS = 1 << 20  # of one padded batch: stays in the cache
_CHEAP_PADDING = 1 << 16  # less than a batch's fixed cost


def dtw(costs: Tensor, start_P: Index, stride_P2: Index, shape_P2: Index) -> npt.NDArray[np.float32]:
    """Return the mean cost along the best warping path of P matrices.

    Matrix p has `shape_P2[p]` rows and columns; its cell (i, j) is `costs[start + i·stride0 + j·stride1]`. The total cost of
    the cheapest path is divided by the number of its steps; among equally cheap predecessors the diagonal comes first, then
    the left one. Rows must not outnumber columns (a path and its mirror image are equally long).
    """
    distances_P = np.empty(len(start_P), np.float32)
    for chosen in _batches(shape_P2):
        distances_P[chosen] = _dtw_batch(costs, start_P[chosen], stride_P2[chosen], shape_P2[chosen])
    return distances_P


def _batches(shape_P2: Index) -> Iterator[Index]:
    """Yield the pairs of each batch: of about one shape, since all matrices of a batch are padded to the largest."""
    order = np.lexsort((shape_P2[:, 0], shape_P2[:, 1]))
    shapes, firsts, counts = np.unique(shape_P2[order][:, ::-1], axis=0, return_index=True, return_counts=True)
    begin = end = rows = cols = useful = 0
    for (c, r), first, count in zip(shapes.tolist(), firsts.tolist(), counts.tolist(), strict=True):
        new_rows, new_cols = max(rows, r), max(cols, c)
        padded = new_rows * new_cols * (end - begin + count)
        wasted = padded - useful - r * c * count
        if end > begin and (padded > _MAX_CELLS or wasted > max(_CHEAP_PADDING, useful // 4)):
            yield from _pieces(order[begin:end], rows * cols)
            begin, new_rows, new_cols, useful = end, r, c, 0
        end, rows, cols = first + count, new_rows, new_cols
        useful += r * c * count
    yield from _pieces(order[begin:end], rows * cols)


def _pieces(chosen: Index, cells: int) -> Iterator[Index]:
    size = max(1, _MAX_CELLS // max(cells, 1))
    for begin in range(0, len(chosen), size):
        yield chosen[begin : begin + size]


def _dtw_batch(costs: Tensor, start_P: Index, stride_P2: Index, shape_P2: Index) -> npt.NDArray[np.float32]:
    # Pairs in the order in which their last cell is reached, so that each antidiagonal finishes a contiguous run of them.
    last_P = shape_P2.sum(1) - 2
    order = np.argsort(last_P, kind="stable")
    num_rows, num_cols = (int(n) for n in shape_P2.max(0))
    device = costs.device
    start, stride, shape = (torch.from_numpy(a[order]).to(device) for a in (start_P, stride_P2, shape_P2))
    finished = np.searchsorted(last_P[order], np.arange(num_rows + num_cols))

    i_R11 = torch.arange(num_rows, device=device)[:, None, None]
    j_C1 = torch.arange(num_cols, device=device)[:, None]
    index_RCP = i_R11 * stride[:, 0] + (start + j_C1 * stride[:, 1])
    # Cells beyond a smaller matrix hold whatever lies there: no cell of the matrix itself depends on them.
    index_RCP.clamp_(max=costs.numel() - 1)
    cell_XP = costs.take(index_RCP).view(num_rows * num_cols, -1)

    num_pairs = len(order)
    infinite = torch.full((3, num_rows + 1, num_pairs), float("inf"), device=device)
    total = [infinite[0], infinite[1], infinite[2]]  # antidiagonals d, d−1, d−2; row i is kept at i + 1
    steps = [torch.zeros(num_rows + 1, num_pairs, device=device) for _ in range(3)]
    mean_P = torch.empty(num_pairs, device=device)
    for d in range(num_rows + num_cols - 1):
        low, high = max(0, d - num_cols + 1), min(num_rows - 1, d)
        jump = max(num_cols - 1, 1)
        cost = cell_XP[d + low * (num_cols - 1) : d + high * (num_cols - 1) + 1 : jump]
        now, before = slice(low + 1, high + 2), slice(low, high + 1)
        if d == 0:
            total[0][now] = cost
            steps[0][now] = 1
        else:
            diagonal, left, up = total[2][before], total[1][now], total[1][before]
            is_left = left <= up
            side = torch.minimum(left, up)
            is_diagonal = diagonal <= side
            torch.add(torch.minimum(diagonal, side), cost, out=total[0][now])
            side_steps = torch.where(is_left, steps[1][now], steps[1][before])
            torch.add(torch.where(is_diagonal, steps[2][before], side_steps), 1, out=steps[0][now])
        done = slice(int(finished[d]), int(finished[d + 1]))
        if done.stop > done.start:
            row = shape[done, 0][None]
            mean_P[done] = (total[0][:, done].gather(0, row) / steps[0][:, done].gather(0, row))[0]
        total = [total[2], total[0], total[1]]
        steps = [steps[2], steps[0], steps[1]]
    distances_P = np.empty(num_pairs, np.float32)
    distances_P[order] = mean_P.cpu().numpy()
    return distances_P
