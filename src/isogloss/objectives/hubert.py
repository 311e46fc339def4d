"""HuBERT (arXiv 2106.07447), ILS-SSL (2112.08778).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| HuBERT (ILS-SSL) | spans | offline clusters | cosine cross-entropy at layers | wave transformer |

Hide spans of the latents and tell each hidden frame's unit, a cluster of MFCC or of an earlier model's states, from the
context. With M hidden frames, heads at the layers in `layers` (ILS-SSL has two), and z the convolutions' outputs,

    logit_{t,c} = cos(A·state_t, e_c)/temperature
    loss = Σ_layers Σ_hidden cross-entropy + feature_penalty · Σ_i M_i · mean(z_i²)
"""

from __future__ import annotations

from typing import Literal, final

from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.encoders.base import Encoder
from isogloss.objectives._masked_units import MaskedUnits, MaskedUnitsConfig


class Config(MaskedUnitsConfig):
    """Settings of HuBERT; the defaults are BASE. LARGE: final_width 768, X-LARGE: 1024; ILS-SSL BASE: layers [4, 12]."""

    name: Literal["hubert"] = "hubert"


@final
class Hubert(MaskedUnits):
    """Masked prediction of the units of hidden frames."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder.width, encoder.num_layers)

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss over the target frames of a batch."""
        terms, _, _ = self.unit_terms(encoder, batch, batch.audio)
        return terms
