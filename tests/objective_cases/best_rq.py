"""BEST-RQ. Additive: masks and noise come from each utterance's seed, the spectrum is normalised within it, and the quantizer is
frozen. The perplexity of the codes is a metric only."""

from __future__ import annotations

import math

from objective_cases import CONFORMER, Case

SMALL = {"name": "best_rq", "num_codes": 200, "start_probability": 0.04, "mask_span": 16}
BEGINS = {"prediction_loss": (math.log(200), 0.1)}
_IDLE = ("mask_embedding_D",)  # noise is put in its place

CASES = {
    "": Case(SMALL, CONFORMER, BEGINS, learns="prediction_loss", idle=_IDLE),
    "codebooks": Case(SMALL | {"num_codebooks": 3}, CONFORMER, BEGINS, learns=None, idle=_IDLE),
    "convolutions": Case(
        SMALL,
        CONFORMER.model_copy(update={"subsampling": "conv", "conv_channels": (8, 8)}),
        BEGINS,
        learns=None,
        idle=_IDLE,
    ),
    "published": Case(
        SMALL | {"num_codes": 8192},
        CONFORMER,
        {"prediction_loss": (math.log(8192), 0.1)},
        learns=None,
        idle=_IDLE,
    ),
}
