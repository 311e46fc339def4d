"""data2vec 2.0. Additive: masks and noise come from each utterance's seed; the teacher's layers are normalised within it."""

from __future__ import annotations

from isogloss.encoders.wave import WaveConfig
from objective_cases import WAVE, Case

SMALL = {
    "name": "data2vec2",
    "num_masks": 2,
    "top_layers": 2,
    "decoder_width": 16,
    "decoder_layers": 2,
    "decoder_groups": 2,
    "decoder_dropout": 0.0,
    "decay_start": 0.99,
    "decay_end": 0.99,
}
ALIBI = WaveConfig.model_validate(
    WAVE.model_dump()
    | {"relative": {"kind": "alibi"}, "position": "conv_stack", "position_kernel": 5, "position_layers": 2}
)
UNSEEN = ("mask_embedding_D",)  # no frame is masked by it

CASES = {
    "": Case(SMALL, ALIBI, {"masked_fraction": (0.49, 0.01)}, learns="fvu", to=0.5, idle=UNSEEN),
    "plain-encoder": Case(SMALL | {"num_masks": 1, "decoder_width": 32}, WAVE, learns=None, idle=UNSEEN),
}
