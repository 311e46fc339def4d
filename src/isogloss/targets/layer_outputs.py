"""Targets made of what a network's layers compute."""

from __future__ import annotations

import torch
from torch import Tensor

from isogloss.core.types import Packed


def instance_norm(frames: Packed, eps: float = 1e-5) -> Tensor:
    """Bring each channel of each utterance to zero mean and unit (biased) variance over its own frames, N×D in fp32.

    data2vec's target normalisation (arXiv 2202.03555): an instance norm without learned parameters.
    """
    with torch.autocast(frames.values_ND.device.type, enabled=False):
        values_ND = frames.values_ND.float()
        utterance_N = frames.utterance_N
        centered_ND = values_ND - frames.with_values(values_ND).mean().index_select(0, utterance_N)
        variances_BD = frames.with_values(centered_ND.square()).mean()
        return centered_ND * torch.rsqrt(variances_BD + eps).index_select(0, utterance_N)
