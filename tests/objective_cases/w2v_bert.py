"""w2v-BERT. Additive but for the diversity term, whose perplexity is a statistic of a micro-batch."""

from __future__ import annotations

import math

from objective_cases import CONFORMER, Case

SMALL = {
    "name": "w2v_bert",
    "num_codes": 40,
    "target_width": 32,
    "final_width": 32,
    "start_probability": 0.1,
    "mask_span": 4,
}
BEGINS = {"contrastive_loss": (math.log(101), 1.2), "accuracy": (0.01, 0.12), "prediction_loss": (math.log(40), 0.1)}
_IDLE = ("mask_embedding_D",)  # noise is put in its place
_PERPLEXITY = "the perplexity is a statistic of a micro-batch, so with the diversity term the loss is not additive"

CASES = {
    "": Case(SMALL, CONFORMER, BEGINS, learns="prediction_loss", idle=_IDLE, not_additive=_PERPLEXITY),
    "learned": Case(
        SMALL | {"fill": "learned", "num_codebooks": 2}, CONFORMER, BEGINS, learns=None, not_additive=_PERPLEXITY
    ),
    "additive": Case(SMALL | {"diversity_weight": 0.0}, CONFORMER, BEGINS, learns=None, idle=_IDLE),
}
