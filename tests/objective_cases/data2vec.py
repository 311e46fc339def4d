from __future__ import annotations

from objective_cases import WAVE, Case

SMALL = {"name": "data2vec", "top_layers": 2, "decay_start": 0.99, "decay_end": 0.99}

CASES = {
    "": Case(SMALL, WAVE, {"masked_fraction": (0.44, 0.1)}, learns="fvu", to=0.5),
    "smooth": Case(SMALL | {"smooth_l1": 0.5}, WAVE, learns=None),
}
