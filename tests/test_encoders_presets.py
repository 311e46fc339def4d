"""Every preset of a published size against what was published, without allocating it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from isogloss.encoders.base import Encoder
from isogloss.encoders.presets import build_encoder, preset, preset_names

# As printed, or as the released configurations have it where the two differ: layers, width, inner width, heads; and parameters of
# the encoder without heads, in millions. Figures with a digit behind the point were counted on released models (transformers'
# classes, heads taken off); 600, 1000 and 8000 are rounded in print.
TRANSFORMERS: dict[str, tuple[int, int, int, int, float]] = {
    "wav2vec2-base": (12, 768, 3072, 12, 94.37),
    "wav2vec2-large": (24, 1024, 4096, 16, 315.43),
    "wav2vec2-large-lv60k": (24, 1024, 4096, 16, 315.44),
    "xlsr-53": (24, 1024, 4096, 16, 315.44),
    "xls-r-300m": (24, 1024, 4096, 16, 315.44),
    "xls-r-1b": (48, 1280, 5120, 16, 962.5),
    "xls-r-2b": (48, 1920, 7680, 16, 2159.3),
    "hubert-base": (12, 768, 3072, 12, 94.37),
    "hubert-large": (24, 1024, 4096, 16, 315.4),
    "hubert-xlarge": (48, 1280, 5120, 16, 962.5),
    "wavlm-base": (12, 768, 3072, 12, 94.38),
    "wavlm-base-plus": (12, 768, 3072, 12, 94.38),
    "wavlm-large": (24, 1024, 4096, 16, 315.45),
    "unispeech-large": (24, 1024, 4096, 16, 315.44),
    "unispeech-sat-base": (12, 768, 3072, 12, 94.37),
    "unispeech-sat-base-plus": (12, 768, 3072, 12, 94.37),
    "unispeech-sat-large": (24, 1024, 4096, 16, 315.4),
    "data2vec-base": (12, 768, 3072, 12, 93.16),
    "data2vec-large": (24, 1024, 4096, 16, 313.28),
    # data2vec's and a factor for each head; 16 layers and 8 of its "prenet".
    "data2vec2-base": (12, 768, 3072, 12, 93.16),
    "data2vec2-large": (24, 1024, 4096, 16, 313.28),
    "dinosr-base": (12, 768, 3072, 12, 93.16),
    "spidr-base": (12, 768, 3072, 12, 93.16 - 12 * 3 * 768 / 1e6),  # no bias of queries, keys and values
    # The trunk and one table of 320 distances of a head's width.
    "speecht5-encoder-base": (12, 768, 3072, 12, 94.37 + 320 * 64 / 1e6),
    "speecht5-encoder-large": (24, 1024, 4096, 16, 315.4 + 320 * 64 / 1e6),
    "w2v-conformer-xl": (24, 1024, 4096, 8, 600),
    "w2v-conformer-xxl": (42, 1024, 4096, 8, 1000),
    "bigssl-xl": (24, 1024, 4096, 8, 600),
    "bigssl-xxl": (42, 1024, 4096, 8, 1000),
    "bigssl-g": (36, 3072, 12288, 16, 8000),
    "w2v-bert-xl": (24, 1024, 4096, 8, 600),
    "w2v-bert-xxl": (42, 1024, 4096, 8, 1000),
    "w2v-bert-600m": (24, 1024, 4096, 16, 600),
    "w2v-bert-2.0": (24, 1024, 4096, 16, 580.5),
    "best-rq-600m": (24, 1024, 4096, 8, 600),
    # None is printed: twelve blocks of 16 + 5 + 3 squares of the width (the feed-forward's factor is 3.6, not 4), by hand.
    "best-rq-speechbrain": (12, 576, 2048, 8, 12 * (8 * 576 * 2048 / 2 + 8 * 576**2) / 1e6),
    # Less the positional convolution, which the class has and never uses: 768·48·128 weights, 128 gains, 768 biases; 1024·64·128.
    "wav2vec2-conformer-base": (12, 768, 3072, 12, 179.7 - 4.72),
    "wav2vec2-conformer-large": (24, 1024, 4096, 16, 618.5 - 8.39),
    # Rotary positions: no map of positions and no two biases of 1024 in 24 layers.
    "wav2vec2-conformer-rope-large": (24, 1024, 4096, 16, 618.5 - 8.39 - 24 * (1024**2 + 2 * 1024) / 1e6),
    "mockingjay-base": (3, 768, 3072, 12, 21.33),
    "mockingjay-large": (12, 768, 3072, 12, 85.12),
    "mockingjay-large-2019": (12, 768, 3072, 12, 85.12 + 400 * 768 / 1e6),  # 480 inputs instead of 80
    "tera-base": (3, 768, 3072, 12, 21.33),
    # Print counts 30 522 word pieces and 512 positions: 110 and 340. What follows them, by hand.
    "bert-base": (12, 768, 3072, 12, 12 * (12 * 768**2 + 13 * 768) / 1e6),
    "bert-large": (24, 1024, 4096, 16, 24 * (12 * 1024**2 + 13 * 1024) / 1e6),
}
RECURRENT_AND_CONVOLUTIONAL: dict[str, float] = {
    # Five convolutions with bias of 512 channels (kernels 10, 8, 4, 4, 4) and a GRU of 256, by hand.
    "cpc": (10 * 512 + 20 * 512**2 + 5 * 512 + 3 * 256 * (512 + 256) + 6 * 256) / 1e6,
    "modified-cpc": 1.843456,
    # As released, less the predictors: 12 maps of 512×512 and one bias of 512.
    "wav2vec-base": (10 * 512 + 20 * 512**2 + 9 * 3 * 512**2 + 9 * 512 + 28 * 512) / 1e6,
    "wav2vec-large": 32.537088 - (12 * 512**2 + 512) / 1e6,
    "vq-wav2vec-gumbel": (34_145_408 - 81_920) / 1e6 - (12 * 512**2 + 512) / 1e6,
    "vq-wav2vec-kmeans": 29.868,
    "apc": 4.105296 - 0.041040,
}


def on_meta(name: str) -> Encoder:
    with torch.device("meta"):
        return build_encoder(preset(name))


def millions(encoder: Encoder) -> float:
    return sum(parameter.numel() for parameter in encoder.parameters()) / 1e6


def test_every_preset_that_is_not_ours_is_checked() -> None:
    published = {name for name in preset_names() if not name.endswith(("-tiny", "-small"))}
    assert published == TRANSFORMERS.keys() | RECURRENT_AND_CONVOLUTIONAL.keys()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_published_transformers(name: str) -> None:
    num_layers, width, ffn_width, num_heads, published = TRANSFORMERS[name]
    config: Any = preset(name)
    assert (config.num_layers, config.width, config.ffn_width, config.num_heads) == (
        num_layers,
        width,
        ffn_width,
        num_heads,
    )
    rounded = published in (600, 1000, 8000)
    by_hand = name in ("best-rq-speechbrain", "bert-base", "bert-large")  # of the blocks alone
    assert millions(on_meta(name)) == pytest.approx(published, rel=0.04 if rounded else 0.015 if by_hand else 2e-4)


@pytest.mark.parametrize("name", RECURRENT_AND_CONVOLUTIONAL)
def test_published_recurrent_and_convolutional_encoders(name: str) -> None:
    assert millions(on_meta(name)) == pytest.approx(RECURRENT_AND_CONVOLUTIONAL[name], rel=2e-4)


def test_sizes_of_the_released_convolutional_conformer_are_those_of_its_class() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        theirs = transformers.Wav2Vec2ConformerModel(transformers.Wav2Vec2ConformerConfig())
    unused = sum(p.numel() for p in theirs.encoder.pos_conv_embed.parameters())
    total = sum(p.numel() for p in theirs.parameters())
    assert total == pytest.approx(179.7e6, rel=1e-3)
    assert 1e6 * millions(on_meta("wav2vec2-conformer-base")) == pytest.approx(total - unused, abs=0.5)
