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

CASES = {
    "": Case(SMALL, WAVE, BEGINS, to=0.9),
    "softmax": Case(SMALL | {"speaker_loss": "softmax", "mixing_probability": 0.0}, WAVE, BEGINS, learns=None),
    "pre-norm": Case(SMALL, WAVE.model_copy(update={"norm_first": True}), learns=None),
}
