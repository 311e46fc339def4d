"""The diversity loss of wav2vec 2.0: use all codes."""

from __future__ import annotations

from torch import Tensor


def diversity_loss(perplexity: Tensor, num_codes: int, num_targets: int) -> Tensor:
    """Return num_targets·(GV − perplexity)/GV, with GV = `num_codes` of all codebooks together.

    The released form of arXiv 2006.11477, eq. 4, which is printed as a negative entropy with the same optimum. `perplexity`
    is that of the mean softmax without noise or temperature, summed over codebooks: a statistic of the whole micro-batch.
    """
    return num_targets * (num_codes - perplexity) / num_codes
