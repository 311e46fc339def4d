"""What CPC, wav2vec and vq-wav2vec share: guesses of the frames to come, told from negatives, and how they are logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isogloss.core.types import Packed
from isogloss.encoders.base import Encoder
from isogloss.losses.binary_nce import binary_nce
from isogloss.losses.negatives import draw_within_utterances


@dataclass
class FutureLoss:
    """Sums over all (frame, step) pairs, and per step: losses (K), positives told from their negatives (K), pairs (K)."""

    losses_K: Tensor
    correct_K: Tensor
    num_pairs_K: Tensor


class FuturePredictor(nn.Module):
    """K affine maps with one bias: h_k(c) = c·W_k + b (arXiv 1904.05862; one transposed convolution in the released code).

    `offset` is how many frames lie between the context's frame and that of step 1: None takes the smallest number of hops
    that covers a receptive field, so that no target shares a sample with z_t (465/160: 3, as released); the paper says 1.
    """

    def __init__(self, encoder: Encoder, *, num_steps: int, num_negatives: int, offset: int | None) -> None:
        super().__init__()
        geometry = encoder.geometry
        self.offset = -(-geometry.receptive_field // geometry.hop) if offset is None else offset
        self.num_negatives = num_negatives
        # torch's default for a transposed convolution of kernel K, whose fan-in it counts as width·K.
        bound = (encoder.latent_width * num_steps) ** -0.5
        self.weight_KDE = nn.Parameter(
            torch.empty(num_steps, encoder.width, encoder.latent_width).uniform_(-bound, bound)
        )
        self.bias_E = nn.Parameter(torch.empty(encoder.latent_width).uniform_(-bound, bound))

    def lags(self) -> list[int]:
        """Return how many frames ahead each of the K steps looks."""
        return [self.offset + k for k in range(len(self.weight_KDE))]

    def forward(
        self, context: Packed, targets: Packed, generators: Sequence[torch.Generator], negative_weight: float
    ) -> FutureLoss:
        """Score the guesses of each step against its frame and that frame's negatives, which all steps share."""
        device = targets.values_ND.device
        sizes, num_frames = targets.sizes, len(targets.values_ND)
        firsts = targets.offsets[:-1]
        drawn = draw_within_utterances(sizes, self.num_negatives, generators, device)
        negatives_NJ = torch.cat([rows + first for rows, first in zip(drawn, firsts, strict=True)])
        rows_NC = torch.cat([torch.arange(num_frames, device=device)[:, None], negatives_NJ], dim=1)
        candidates_NCE = targets.values_ND.index_select(0, rows_NC.flatten()).unflatten(0, rows_NC.shape)
        place_N = torch.cat([torch.arange(n) for n in sizes])

        # Guesses lie with the frame that they guess, so that its candidates are gathered once and not for every step.
        frames_N = torch.arange(num_frames, device=device)
        guesses = [
            context.values_ND.index_select(0, (frames_N - lag).clamp(min=0)) @ weight_DE + self.bias_E
            for lag, weight_DE in zip(self.lags(), self.weight_KDE, strict=True)
        ]
        guesses_NEK = torch.stack(guesses, dim=2).to(candidates_NCE.dtype)
        scores_NCK = torch.bmm(candidates_NCE, guesses_NEK)

        losses, correct, counts = [], [], []
        for lag, scores_NC in zip(self.lags(), scores_NCK.unbind(2), strict=True):
            ends_M = (place_N >= lag).nonzero().squeeze(1).to(device)
            loss, num_correct = binary_nce(scores_NC.index_select(0, ends_M), negative_weight)
            losses.append(loss)
            correct.append(num_correct)
            counts.append(len(ends_M))
        return FutureLoss(torch.stack(losses), torch.stack(correct), torch.tensor(counts))


def spread(values_ND: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Return the standard deviation of a channel over the rows, averaged over channels, as a metric."""
    num_rows = len(values_ND)
    std = values_ND.detach().float().std(0, unbiased=False).mean() if num_rows else 0.0
    return std * num_rows, num_rows


def metrics_of(result: FutureLoss) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """Return the loss and the accuracy of all steps together and of each."""
    losses_K, total = result.losses_K.detach(), int(result.num_pairs_K.sum())
    metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {}
    metrics["contrastive_loss"] = (losses_K.sum(), total)
    metrics["accuracy"] = (result.correct_K.sum(), total)
    for k, count in enumerate(result.num_pairs_K.tolist()):
        metrics[f"contrastive_loss_{k + 1}"] = (losses_K[k], count)
        metrics[f"accuracy_{k + 1}"] = (result.correct_K[k], count)
    return metrics
