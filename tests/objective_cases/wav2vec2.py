from __future__ import annotations

import math

from objective_cases import WAVE, Case

SMALL = {"name": "wav2vec2", "num_codes": 40, "target_width": 32, "final_width": 32, "feature_dropout": 0.0}
# InfoNCE of independent scores of standard deviation s starts about s²/2 above chance; cosines of 32 numbers over 0.1 have
# s = 1.8 at most before projections correlate them.
BEGINS = {"contrastive_loss": (math.log(101), 0.8), "accuracy": (0.01, 0.05)}

CASES = {
    "": Case(SMALL, WAVE, BEGINS, learns="contrastive_loss"),
    "additive": Case(SMALL | {"diversity_weight": 0.0}, WAVE, BEGINS, learns="contrastive_loss"),
    "equalized": Case(SMALL | {"equalize_masks": True}, WAVE, BEGINS, learns=None),
}
