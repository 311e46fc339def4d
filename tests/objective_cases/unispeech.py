"""UniSpeech. Additive but for the diversity term, whose perplexity is a statistic of a micro-batch: CTC and the contrastive term are
those of each utterance, weighed by its own hidden frames."""

from __future__ import annotations

import math

from objective_cases import WAVE, Case

SMALL = {
    "name": "unispeech",
    "labels": {"symbols": ("a", "b", "c", "d")},
    "num_codes": 40,
    "target_width": 32,
    "final_width": 24,
    "feature_dropout": 0.0,
    "output_dropout": 0.0,
}
# Raw states of the encoder against lifted codes: both lie in a cone at first, so scores spread little.
BEGINS = {"contrastive_loss": (math.log(101), 0.8), "unlabelled": (0.0, 0.0)}

CASES = {
    # The diversity term is what does not add up; "unlabelled" has it.
    "": Case(SMALL | {"diversity_weight": 0.0}, WAVE, BEGINS, to=0.9),
    "unlabelled": Case(
        SMALL | {"ctc_weight": 0.0, "labels": {}},
        WAVE,
        learns=None,
        not_additive="With the diversity term the loss is not additive: the perplexity is a statistic of a micro-batch",
    ),
}
