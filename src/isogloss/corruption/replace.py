"""Hide consecutive frames of a spectrum as BERT hides tokens: most are zeroed, some replaced, some left (Mockingjay, TERA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isogloss.core.types import Packed


@dataclass(frozen=True)
class Replacement:
    """Which rows are to be guessed, and what becomes of each: row n is taken from row `source_N[n]`, or zeroed.

    `is_chosen_N` and `is_zeroed_N` are booleans, `source_N` rows of the packed stream; all on the CPU. A chosen row that is
    neither zeroed nor taken from elsewhere is left as it is, and guessed all the same.
    """

    is_chosen_N: Tensor
    is_zeroed_N: Tensor
    source_N: Tensor

    def apply(self, values: Packed) -> Packed:
        """Return the packed rows with what was chosen replaced."""
        device = values.values_ND.device
        taken_ND = values.values_ND.index_select(0, self.source_N.to(device))
        return values.with_values(taken_ND.masked_fill(self.is_zeroed_N.to(device)[:, None], 0.0))

    def repeated(self, count: int, lengths: Sequence[int], total_lengths: Sequence[int]) -> Replacement:
        """Return the same for rows that are `count` times finer: utterance i's `lengths[i]` rows become the first
        `lengths[i]`·count of its `total_lengths[i]` rows; rows beyond are not chosen.
        """
        chosen, zeroed, sources = [], [], []
        first = fine_first = 0
        for n, total in zip(lengths, total_lengths, strict=True):
            rest = total - n * count
            span = slice(first, first + n)
            chosen += [self.is_chosen_N[span].repeat_interleave(count), torch.zeros(rest, dtype=torch.bool)]
            zeroed += [self.is_zeroed_N[span].repeat_interleave(count), torch.zeros(rest, dtype=torch.bool)]
            fine = (self.source_N[span] - first)[:, None] * count + torch.arange(count)
            sources += [fine_first + fine.flatten(), torch.arange(fine_first + n * count, fine_first + total)]
            first, fine_first = first + n, fine_first + total
        return Replacement(torch.cat(chosen), torch.cat(zeroed), torch.cat(sources))


def replace_spans(
    lengths: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    probability: float,
    span: int,
    zeroed: float = 0.8,
    replaced: float = 0.1,
    decide: Literal["utterance", "span"] = "utterance",
) -> Replacement:
    """Choose spans of each utterance of a packed batch, and throw a die for what becomes of them (arXiv 1910.12638).

    An utterance of S rows gets round(`probability`·S/`span`) spans of `span` rows, at least one, whose starts are drawn without
    replacement from 0 … S − span: they may overlap, so 0.15 and 7 choose 14.1 % of a long utterance. With probability
    `zeroed` they become zero, with `replaced` each takes the rows of another span of the utterance, otherwise they stay; the
    die is thrown for the utterance or for every span. An utterance shorter than a span is left alone. Utterance i takes its
    numbers from `generators[i]` (on the CPU) alone.
    """
    chosen, zero, source, first = [], [], [], 0
    for length, generator in zip(lengths, generators, strict=True):
        is_chosen, is_zeroed, origin = [False] * length, [False] * length, list(range(first, first + length))
        places = length - span + 1
        if places > 0:
            count = min(max(round(probability * length / span), 1), places)
            starts = torch.randperm(places, generator=generator)[:count].tolist()
            others = torch.randint(places, (count,), generator=generator).tolist()
            dice = torch.rand(count, generator=generator).tolist()
            for start, other, die in zip(starts, others, dice, strict=True):
                outcome = dice[0] if decide == "utterance" else die
                for i in range(span):
                    is_chosen[start + i] = True
                    is_zeroed[start + i] = outcome < zeroed
                    origin[start + i] = first + (other if zeroed <= outcome < zeroed + replaced else start) + i
        chosen += is_chosen
        zero += is_zeroed
        source += origin
        first += length
    return Replacement(
        torch.tensor(chosen, dtype=torch.bool),
        torch.tensor(zero, dtype=torch.bool),
        torch.tensor(source, dtype=torch.int64),
    )
