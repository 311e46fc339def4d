"""data2vec. Additive: the teacher sees each utterance alone, and its layers are normalised over the time of one utterance. Over an
encoder with batch norm the student's frames share their statistics."""

from __future__ import annotations

from objective_cases import BATCH_NORM, WAVE, Case

SMALL = {"name": "data2vec", "top_layers": 2, "decay_start": 0.99, "decay_end": 0.99}

CASES = {
    "": Case(SMALL, WAVE, {"masked_fraction": (0.44, 0.1)}, learns="fvu", to=0.5),
    "smooth": Case(SMALL | {"smooth_l1": 0.5}, WAVE, learns=None),
    "batch-norm": Case(
        SMALL, BATCH_NORM, learns=None, not_additive="With batch norm in the encoder the loss is not additive"
    ),
}
