"""CTC. Additive: an utterance's likelihood is its own."""

from __future__ import annotations

from objective_cases import CPC, WAVE, Case

SMALL = {"name": "ctc", "labels": {"symbols": ("a", "b", "c", "d")}, "mask_probability": 0.3, "mask_span": 2}

CASES = {
    "": Case(SMALL, WAVE, {"unlabelled": (0.0, 0.0)}, to=0.5),
    "cpc": Case(SMALL, CPC.model_copy(update={"mask_embedding": True}), learns=None),
}
