"""Which frames wav2vec 2.0 hides: spans at random starts, whole ones by default."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mask_spans(
    lengths: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    probability: float,
    span: int,
    min_masks: int = 2,
    equalize: bool = False,
) -> Tensor:
    """Draw a span mask for each utterance of a packed batch; True means masked, N booleans on the CPU.

    An utterance of S frames gets ⌊probability·S/span + U(0,1)⌋ spans, at least `min_masks`, whose starts are drawn without
    replacement from [0, S − span) (arXiv 2006.11477, §3.1 and the released code): spans overlap, `probability` 0.65 and
    `span` 10 hide 49 % of the frames, and the last frame is never hidden. An utterance without such a start (S ≤ span) is
    left unmasked. Utterance i takes its numbers from `generators[i]` (on the CPU) alone.

    `equalize` reproduces fairseq's `require_same_masks`: single frames of the masks are uncovered again until every masked
    utterance of the batch has as many masked frames as the least masked one, which breaks most spans and makes the
    difficulty depend on the batch.
    """
    starts, firsts, first = [], [], 0
    for length, generator in zip(lengths, generators, strict=True):
        firsts.append(first)
        num_starts = length - span
        if num_starts > 0:
            rounding = float(torch.rand((), generator=generator))
            num_spans = min(max(min_masks, int(probability * length / span + rounding)), num_starts)
            starts.append(first + torch.randperm(num_starts, generator=generator)[:num_spans])
        first += length
    is_masked_N = torch.zeros(first, dtype=torch.bool)
    if starts:
        is_masked_N[(torch.cat(starts)[:, None] + torch.arange(span)).flatten()] = True
    if equalize:
        _equalize(is_masked_N, firsts, lengths, generators)
    return is_masked_N


def _equalize(
    is_masked_N: Tensor, firsts: Sequence[int], lengths: Sequence[int], generators: Sequence[torch.Generator]
) -> None:
    rows_B = [
        first + is_masked_N[first : first + n].nonzero().squeeze(1) for first, n in zip(firsts, lengths, strict=True)
    ]
    fewest = min((len(rows) for rows in rows_B if len(rows)), default=0)
    for rows, generator in zip(rows_B, generators, strict=True):
        if len(rows) > fewest:
            uncovered = torch.randperm(len(rows), generator=generator)[: len(rows) - fewest]
            is_masked_N[rows[uncovered]] = False
