"""CPC. Not additive: negatives come from the whole micro-batch."""

from __future__ import annotations

import math

from isogloss.encoders.cpc import CpcConfig
from objective_cases import CPC, Case

SMALL = {"name": "cpc", "num_heads": 4, "ffn_width": 64, "dropout": 0.0, "reach": 32}
BEGINS = {"contrastive_loss": (math.log(129), 0.01), "accuracy": (1 / 129, 0.05)}
ORIGINAL = CpcConfig(channels=48, width=32, norm="none", recurrent="gru")
_BATCH = "The loss depends on the micro-batch: negatives come from it"

CASES = {
    "": Case(SMALL, CPC, BEGINS, learns="contrastive_loss", not_additive=_BATCH),
    "reference": Case(SMALL | {"reference_negatives": True}, CPC, BEGINS, learns=None, not_additive=_BATCH),
    "original": Case(
        {"name": "cpc", "predictor": "linear"}, ORIGINAL, BEGINS, learns="contrastive_loss", not_additive=_BATCH
    ),
}
