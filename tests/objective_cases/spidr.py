"""SpidR. Additive, as DinoSR; not over an encoder with batch norm."""

from __future__ import annotations

import math

from objective_cases import BATCH_NORM, WAVE, Case

SMALL = {"name": "spidr", "top_layers": 2, "num_codes": 32, "decay_start": 0.99}
ENCODER = WAVE.model_copy(update={"qkv_bias": False})
BEGINS = {"cross_entropy": (math.log(32), 0.15), "accuracy": (1 / 32, 0.06)}

CASES = {
    "": Case(SMALL, ENCODER, BEGINS, learns="cross_entropy"),
    "copied-teacher": Case(SMALL | {"teacher_start": "copy"}, ENCODER, learns=None),
    "batch-norm": Case(
        SMALL, BATCH_NORM, learns=None, not_additive="With batch norm in the encoder the loss is not additive"
    ),
}
