"""vq-wav2vec. Additive: negatives and code noise come from each utterance's seed, and k-means distances are taken utterance by
utterance. With the diversity term there is a perplexity, a statistic of a micro-batch."""

from __future__ import annotations

import math

from isogloss.encoders.presets import preset
from objective_cases import Case

GUMBEL = preset("vq-wav2vec-tiny")
KMEANS = GUMBEL.model_copy(update={"quantizer": "kmeans", "num_codes": 12})
SMALL = {"name": "vq_wav2vec"}
BEGINS = {"contrastive_loss": (11 * math.log(2), 0.7)}

CASES = {
    "": Case(SMALL, GUMBEL, BEGINS | {"code_perplexity": (60.0, 25.0)}, learns="contrastive_loss", to=0.9),
    "diverse": Case(
        SMALL | {"diversity_weight": 100.0},
        GUMBEL,
        BEGINS,
        learns=None,
        not_additive="with it the loss holds a batch statistic and is not additive",
    ),
    "kmeans": Case(SMALL, KMEANS, BEGINS, learns="loss", to=0.9),
}
