"""UniSpeech-SAT. Not additive: candidates and second voices come from the micro-batch, and so does the perplexity."""

from __future__ import annotations

import math

from objective_cases import NUM_UNITS, WAVE, Case

SMALL = {
    "name": "unispeech_sat",
    "num_units": NUM_UNITS,
    "final_width": 32,
    "num_codes": 40,
    "target_width": 24,
    "speaker_layer": 1,
    "mixing_probability": 1.0,
}
BEGINS = {"prediction_loss": (math.log(NUM_UNITS), 0.5), "same_utterance_auc": (0.5, 0.2)}
_BATCH = "The loss depends on the micro-batch: candidates and partners come from it."

CASES = {
    "": Case(SMALL, WAVE, BEGINS, to=0.9, not_additive=_BATCH),
    "softmax": Case(
        SMALL | {"speaker_loss": "softmax", "mixing_probability": 0.0}, WAVE, BEGINS, learns=None, not_additive=_BATCH
    ),
    "pre-norm": Case(SMALL, WAVE.model_copy(update={"norm_first": True}), learns=None, not_additive=_BATCH),
}
