"""The published sizes of Conformers on mel spectra, and small ones of ours.

Where a publication names no convolution channels or dropouts, ours stand; totals are checked in tests/test_encoders_conformer.py.
"""

from __future__ import annotations

from typing import Any

from isogloss.encoders.conformer import ConformerConfig

_NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "conv_dropout": 0.0}
_FILTERBANK_16 = {"filterbank": "kaldi16", "subsampling": "stack", "num_stacked": 2, "num_heads": 16, "kernel": 31}


def _google(num_layers: int, width: int = 1024, num_heads: int = 8, positions: str = "none") -> ConformerConfig:
    """The Conformers of Google's papers: two convolutions of stride 2, kernel 5, feed-forwards of 4·width."""
    return _conformer(
        width=width, num_layers=num_layers, num_heads=num_heads, ffn_width=4 * width, positions=positions, kernel=5
    )


def _conformer(**settings: Any) -> ConformerConfig:
    return ConformerConfig.model_validate(settings)


_TINY = {
    "num_bins": 40,
    "conv_channels": (16, 16),
    "width": 80,
    "num_layers": 2,
    "num_heads": 4,
    "ffn_width": 320,
    "kernel": 15,
    "conv_norm": "layer",
}
_SMALL = {"conv_channels": (32, 16), "width": 144, "num_layers": 6, "num_heads": 4, "ffn_width": 576, "kernel": 31}

PRESETS: dict[str, ConformerConfig] = {
    # arXiv 2010.10504, table 1; relative attention was removed for speed (§3.1).
    "w2v-conformer-xl": _google(24),
    "w2v-conformer-xxl": _google(42),
    # arXiv 2109.13226, §3: the two above, and 8 B.
    "bigssl-xl": _google(24),
    "bigssl-xxl": _google(42),
    "bigssl-g": _google(36, 3072, 16),
    # arXiv 2108.06209, table 1: 12 blocks below the contrastive loss, 12 or 30 above.
    "w2v-bert-xl": _google(24),
    "w2v-bert-xxl": _google(42),
    # fairseq2's w2v-BERT: stacked filterbanks, Transformer-XL positions, no dropout.
    "w2v-bert-600m": _conformer(positions="relative", **_FILTERBANK_16, **_NO_DROPOUT),
    # arXiv 2312.05187, §3.2.1, and the released configuration.
    "w2v-bert-2.0": _conformer(
        positions="relative_key",
        conv_norm="layer",
        causal_convolution=True,
        layerdrop=0.1,
        dropout=0.0,
        attention_dropout=0.0,
        conv_dropout=0.1,
        **_FILTERBANK_16,
    ),
    # arXiv 2202.01855, §4.1: 0.6 B; the quantizer's stack of four frames is what the convolutions subsample.
    "best-rq-600m": _google(24, positions="relative"),
    # SpeechBrain's BEST-RQ recipe for LibriSpeech, the smallest public one that was trained in full.
    "best-rq-speechbrain": _conformer(
        width=576,
        num_layers=12,
        num_heads=8,
        ffn_width=2048,
        positions="relative",
        kernel=31,
        conv_norm="layer",
        activation="gelu",
    ),
    # Ours: seconds and minutes on two cores.
    "conformer-tiny": _conformer(**_TINY, **_NO_DROPOUT),
    "conformer-small": _conformer(**_SMALL),
}
