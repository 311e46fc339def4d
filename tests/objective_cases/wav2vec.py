"""wav2vec. Additive: negatives are of one utterance."""

from __future__ import annotations

import math

from isogloss.encoders.presets import preset
from objective_cases import Case

TINY = preset("wav2vec-tiny")
# Scores near zero: each pair costs (1 + 10)·ln 2. The first guess is a small vector against latents that are all positive
# (ReLU), which moves scores together.
BEGINS = {"contrastive_loss": (11 * math.log(2), 0.7), "accuracy": (1 / 11, 0.06)}

CASES = {
    "": Case({"name": "wav2vec"}, TINY, BEGINS, learns="contrastive_loss", to=0.6),
    "paper": Case({"name": "wav2vec", "offset": 1, "negative_weight": 0.5}, TINY, learns=None),
}
