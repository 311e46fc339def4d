"""HuBERT. Additive: masks come from each utterance's seed, and the penalty is taken utterance by utterance. fairseq's equalised
masks depend on the shortest utterance of a micro-batch."""

from __future__ import annotations

import math

from objective_cases import NUM_UNITS, WAVE, Case

SMALL = {"name": "hubert", "num_units": NUM_UNITS, "final_width": 32}
# Cosines of 32 numbers over 0.1 spread more than those of 256: chance, and half their variance.
BEGINS = {"prediction_loss": (math.log(NUM_UNITS), 0.5), "accuracy": (1 / NUM_UNITS, 0.12)}

CASES = {
    "": Case(SMALL, WAVE, BEGINS, learns="prediction_loss"),
    "intermediate": Case(
        SMALL | {"layers": [1, 2]},
        WAVE,
        BEGINS | {"prediction_loss_1": (math.log(NUM_UNITS), 0.5)},
        learns="prediction_loss_1",
    ),
    "unmasked": Case(SMALL | {"masked_weight": 0.5, "unmasked_weight": 0.5}, WAVE, learns="unmasked_prediction_loss"),
    "equalized": Case(
        SMALL | {"equalize_masks": True},
        WAVE,
        learns=None,
        not_additive="`equalize_masks = true` gives fairseq's rule, and a loss that depends on the micro-batch",
    ),
}
