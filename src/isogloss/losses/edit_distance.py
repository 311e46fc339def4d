"""The least number of edits between two sequences (Levenshtein distance)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt


def edit_distance(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """Return the least number of substitutions, deletions and insertions."""
    return int(edit_table(reference, hypothesis)[-1, -1])


def edit_table(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """Return the distances between all beginnings, (len(reference)+1)×(len(hypothesis)+1)."""
    codes = {token: index for index, token in enumerate(dict.fromkeys([*reference, *hypothesis]))}
    hypothesis_codes = np.fromiter((codes[token] for token in hypothesis), np.int64, len(hypothesis))
    position = np.arange(len(hypothesis) + 1)
    table = np.empty((len(reference) + 1, len(hypothesis) + 1), np.int64)
    table[0] = position
    for i, token in enumerate(reference):
        row = table[i] + 1
        row[1:] = np.minimum(row[1:], table[i, :-1] + (hypothesis_codes != codes[token]))
        # An insertion costs one for each position moved on: the best start is a running minimum.
        table[i + 1] = np.minimum.accumulate(row - position) + position
    return table
