"""wav2vec 2.0. Additive but for the diversity term, whose perplexity is a statistic of a micro-batch, and for fairseq's equalised
masks. Negatives are of one utterance, and the penalty is taken utterance by utterance."""

from __future__ import annotations

import math

from objective_cases import WAVE, Case

SMALL = {"name": "wav2vec2", "num_codes": 40, "target_width": 32, "final_width": 32, "feature_dropout": 0.0}
# InfoNCE of independent scores of standard deviation s starts about s²/2 above chance; cosines of 32 numbers over 0.1 have
# s = 1.8 at most before projections correlate them.
BEGINS = {"contrastive_loss": (math.log(101), 0.8), "accuracy": (0.01, 0.05)}
_PERPLEXITY = "The perplexity is a statistic of a micro-batch"
_EQUALIZED = "`equalize_masks = true` gives that rule, and a loss that depends on the micro-batch"

CASES = {
    "": Case(SMALL, WAVE, BEGINS, learns="contrastive_loss", not_additive=_PERPLEXITY),
    "additive": Case(SMALL | {"diversity_weight": 0.0}, WAVE, BEGINS, learns="contrastive_loss"),
    "equalized": Case(SMALL | {"equalize_masks": True}, WAVE, BEGINS, learns=None, not_additive=_EQUALIZED),
}
