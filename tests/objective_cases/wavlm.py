"""WavLM. Additive as HuBERT where nothing is mixed; a second voice comes from the micro-batch."""

from __future__ import annotations

import math

from objective_cases import NUM_UNITS, WAVE, Case

SMALL = {"name": "wavlm", "num_units": NUM_UNITS, "final_width": 32, "mixing_probability": 1.0}
BEGINS = {"prediction_loss": (math.log(NUM_UNITS), 0.5), "accuracy": (1 / NUM_UNITS, 0.12)}

CASES = {
    "": Case(
        SMALL,
        WAVE,
        BEGINS,
        learns="prediction_loss",
        not_additive="The loss depends on the micro-batch, since the partner comes from it",
    ),
    "clean": Case(SMALL | {"mixing_probability": 0.0}, WAVE, BEGINS, learns=None),
}
