"""Product quantization by Gumbel softmax: the targets of wav2vec 2.0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.core.types import Packed
from isogloss.targets.base import Quantized


class GumbelQuantizer(nn.Module):
    """Choose one of C codes from each of G codebooks and concatenate them (arXiv 2006.11477, §2; arXiv 1611.01144).

    In training the choice is the argmax of logits + Gumbel noise, and its gradient that of the softmax at `temperature`
    (straight through); in evaluation the argmax of the logits. Computed in fp32 whatever autocast says: at temperature 0.1
    logits of ±50 must still be told apart.

    `codebook` is 1×(G·C)×(target_width/G), the shape it has in every released checkpoint.
    """

    def __init__(self, width: int, target_width: int, *, num_groups: int, num_codes: int) -> None:
        super().__init__()
        if target_width % num_groups:
            raise ValueError(
                f"`target_width` must be a multiple of the number of codebooks, but is {target_width} for {num_groups}"
            )
        self.num_groups = num_groups
        self.num_codes = num_codes
        self.logits = nn.Linear(width, num_groups * num_codes)
        self.codebook = nn.Parameter(torch.empty(1, num_groups * num_codes, target_width // num_groups))
        # As released: logits of standard deviation √width on normalised frames, so the first choices are nearly certain.
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        nn.init.uniform_(self.codebook)

    def forward(self, frames: Packed, temperature: Tensor | float, generators: Sequence[torch.Generator]) -> Quantized:
        """Quantize M frames (M×width); `generators[i]`, on their device, gives utterance i its noise."""
        with torch.autocast(frames.values_ND.device.type, enabled=False):
            logits_MGC = F.linear(frames.values_ND.float(), self.logits.weight.float(), self.logits.bias.float())
            logits_MGC = logits_MGC.unflatten(1, (self.num_groups, self.num_codes))
            mean_probabilities_GC = logits_MGC.softmax(-1).sum(0) / max(len(logits_MGC), 1)
            if self.training:
                soft_MGC = ((logits_MGC + _gumbel_noise(frames.sizes, logits_MGC, generators)) / temperature).softmax(
                    -1
                )
                codes_MG = soft_MGC.argmax(-1)
                # Exactly one-hot: what is added is exactly zero and carries the gradient of the softmax.
                choice_MGC = F.one_hot(codes_MG, self.num_codes) + (soft_MGC - soft_MGC.detach())
            else:
                codes_MG = logits_MGC.argmax(-1)
                choice_MGC = F.one_hot(codes_MG, self.num_codes).to(logits_MGC.dtype)
            codebook_GCd = self.codebook.float().view(self.num_groups, self.num_codes, -1)
            targets_MD = torch.einsum("mgc,gcd->mgd", choice_MGC, codebook_GCd).flatten(1)
        return Quantized(targets_MD, codes_MG, mean_probabilities_GC)


def _gumbel_noise(sizes: Sequence[int], like_MGC: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    noise_MGC = torch.empty_like(like_MGC)
    for part, generator in zip(noise_MGC.split(list(sizes)), generators, strict=True):
        part.exponential_(generator=generator)
    return noise_MGC.log_().neg_()
