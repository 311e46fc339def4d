"""w2v-Conformer. Additive: masks and negatives are of one utterance. Not over an encoder with batch norm."""

from __future__ import annotations

import math

from objective_cases import BATCH_NORM, CONFORMER, Case

SMALL = {"name": "w2v_conformer", "final_width": 32, "start_probability": 0.1, "mask_span": 4}
# InfoNCE of independent scores of standard deviation s starts about s²/2 above chance; cosines of 32 numbers over 0.1: 1.6.
BEGINS = {"contrastive_loss": (math.log(101), 1.6), "accuracy": (0.01, 0.12)}

CASES = {
    "": Case(SMALL, CONFORMER, BEGINS, learns="contrastive_loss", to=0.95),
    "batch-norm": Case(
        SMALL,
        BATCH_NORM,
        learns=None,
        not_additive="With batch norm the loss of a batch is not the sum over its parts in training",
    ),
}
