from __future__ import annotations

from objective_cases import WAVE, Case, ctc, wav2vec2

PARTS = {
    "contrastive": {"on": "speech", "objective": wav2vec2.SMALL},
    "transcript": {"on": "pairs", "weight": 0.5, "objective": ctc.SMALL},
}

CASES = {
    "": Case({"name": "multi", "parts": PARTS}, WAVE),
    # a part that never has anything: a text that no audio goes with
    "idle": Case(
        {"name": "multi", "parts": {**PARTS, "texts": {"on": "text_only", "objective": ctc.SMALL}}},
        WAVE,
        learns=None,
        idle=("parts.texts",),
    ),
}
