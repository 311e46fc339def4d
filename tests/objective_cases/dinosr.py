"""DinoSR. Additive: the codebooks stand still within an update and then move by the sums over all of it."""

from __future__ import annotations

import math

from objective_cases import WAVE, Case

SMALL = {"name": "dinosr", "top_layers": 2, "num_codes": 32, "decay_start": 0.99, "decay_end": 0.99}
BEGINS = {"cross_entropy": (math.log(32), 0.15), "accuracy": (1 / 32, 0.06)}

CASES = {
    "": Case(SMALL, WAVE, BEGINS, learns="cross_entropy"),
    "frozen": Case(SMALL | {"freeze_after": 0.0}, WAVE, learns=None),
}
