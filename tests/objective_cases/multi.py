"""Several objectives. Not additive: before the first update's counts are known, a micro-batch is scaled by its own."""

from __future__ import annotations

from objective_cases import WAVE, Case, ctc, wav2vec2

PARTS = {
    "contrastive": {"on": "speech", "objective": wav2vec2.SMALL},
    "transcript": {"on": "pairs", "weight": 0.5, "objective": ctc.SMALL},
}
_OWN_COUNTS = "In the first update each micro-batch is scaled by its own counts, so the loss is not additive"

CASES = {
    "": Case({"name": "multi", "parts": PARTS}, WAVE, not_additive=_OWN_COUNTS),
    # a part that never has anything: a text that no audio goes with
    "idle": Case(
        {"name": "multi", "parts": {**PARTS, "texts": {"on": "text_only", "objective": ctc.SMALL}}},
        WAVE,
        learns=None,
        idle=("parts.texts",),
        not_additive=_OWN_COUNTS,
    ),
}
