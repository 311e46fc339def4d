"""Positions of WavLM, data2vec and SpeechT5: buckets, gates, borders between utterances, blocks, sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from isogloss.core.types import Packed
from isogloss.encoders.presets import build_encoder, preset
from isogloss.encoders.wave import WaveConfig, WaveEncoder
from isogloss.nn.position import sinusoids
from isogloss.nn.position_bias import distance_buckets

SMALL: dict[str, Any] = {
    "conv_channels": (8,) * 7,
    "width": 32,
    "num_layers": 3,
    "num_heads": 4,
    "ffn_width": 40,
    "position_kernel": 9,
    "position_groups": 4,
    "layerdrop": 0.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "input_dropout": 0.0,
}
KINDS: dict[str, dict[str, Any]] = {
    "gated": {"relative": {"kind": "gated"}},
    "gated, few buckets": {"relative": {"kind": "gated", "num_buckets": 16, "max_distance": 30}, "norm_first": True},
    "clipped": {"relative": {"kind": "clipped", "max_distance": 5}, "position": "conv_sinusoid"},
    "stack": {"position": "conv_stack", "position_layers": 3},
}


def make(**changes: Any) -> WaveEncoder:
    """An encoder whose tables and gates are random: as initialised, they are near nothing and would hide a fault."""
    torch.manual_seed(0)
    encoder = WaveEncoder(WaveConfig.model_validate(SMALL | changes)).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "relative" in name:
                parameter.copy_(torch.randn_like(parameter))
    return encoder


def latents_of(*sizes: int) -> Packed:
    generator = torch.Generator().manual_seed(1)
    return Packed.from_list([torch.randn(n, 8, generator=generator) for n in sizes])


def test_buckets_at_their_borders() -> None:
    distances = torch.tensor([0, -1, 1, 79, -79, 80, -80, 799, -799, 800, -800, 10_000, -10_000])
    buckets = distance_buckets(distances, 320, 800).tolist()
    # f(80) = 80, f(800 and beyond) = 159; keys after the query have 160 more.
    assert buckets == [0, 1, 161, 239, 79, 240, 80, 319, 159, 319, 159, 319, 159]
    order = distance_buckets(torch.arange(1, 2000), 320, 800)
    assert bool((order.diff() >= 0).all())
    assert int(order.diff().max()) == 1


def test_a_zero_table_leaves_the_trunk() -> None:
    gated, trunk = make(relative={"kind": "gated"}), make()
    with torch.no_grad():
        gated.get_parameter("relative.weight").zero_()
    trunk.load_state_dict({n: t for n, t in gated.state_dict().items() if "relative" not in n})
    latents = latents_of(30, 7)
    torch.testing.assert_close(
        gated.context(latents).last.values_ND, trunk.context(latents).last.values_ND, atol=1e-6, rtol=1e-5
    )


def slow_attention(encoder: WaveEncoder, inputs_SD: Tensor) -> Tensor:
    """Attention of layer 0 with one loop per query, head and key, from the equations."""
    attention: Any = encoder.layers[0].get_submodule("attention")
    heads, table = attention.num_heads, encoder.get_parameter("relative.weight")
    q, k, v = attention.qkv(inputs_SD).chunk(3, dim=1)
    width = q.shape[1] // heads
    out = torch.zeros_like(q)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for i in range(len(q)):
            if table.shape[1] == heads:
                sums = attention.relative.gate(inputs_SD[i, part]).view(2, 4).sum(1).sigmoid()
                gate = sums[0] * (sums[1] * attention.relative.scale_H[h] - 1) + 2
                bias = [gate * table[distance_buckets(torch.tensor(j - i), 16, 30), h] for j in range(len(q))]
            else:
                bias = [q[i, part] / width**0.5 @ table[min(max(i - j, -5), 4) + 5] for j in range(len(q))]
            logits = torch.stack([q[i, part] @ k[j, part] / width**0.5 + bias[j] for j in range(len(q))])
            out[i, part] = logits.softmax(0) @ v[:, part]
    result: Tensor = attention.out(out)
    return result


@pytest.mark.parametrize("kind", ["gated, few buckets", "clipped"])
@torch.no_grad()
def test_attention_equals_the_equations(kind: str) -> None:
    encoder = make(**KINDS[kind])
    inputs = torch.randn(50, 32)
    shared = encoder.get_submodule("relative")([0, 41, 9])
    got = encoder.layers[0].get_submodule("attention")(inputs, [0, 41, 9], shared)
    expected = torch.cat([slow_attention(encoder, part) for part in inputs.split([41, 9])])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_utterance_does_not_see_its_neighbours(kind: str) -> None:
    encoder = make(**KINDS[kind])
    together = encoder.context(latents_of(50, 3, 50, 21)).last.split()
    for alone, packed in zip(latents_of(50, 3, 50, 21).split(), together, strict=True):
        expected = encoder.context(Packed.from_list([alone])).last.values_ND
        torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gated", "clipped"])
def test_blocks_of_queries_equal_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make(**KINDS[kind])
    latents = latents_of(700, 40)
    whole = encoder.context(latents).last.values_ND.detach()
    monkeypatch.setattr("isogloss.nn.attention._BIASED_QUERIES", 33)
    with torch.no_grad():
        own_blocks = encoder.context(latents).last.values_ND
        monkeypatch.setattr("isogloss.nn.attention.is_fast", lambda *_: False)
        torch_blocks = encoder.context(latents).last.values_ND
    torch.testing.assert_close(own_blocks, whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch_blocks, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: str, checkpointing: bool) -> None:
    """With dropout too, and the same with recomputed layers."""
    encoder = make(**KINDS[kind], checkpoint_activations=checkpointing, attention_dropout=0.2).train()
    latents = latents_of(40, 40, 9)
    states = encoder.context(latents, torch.arange(89) % 4 == 0).last.values_ND
    (states * torch.randn_like(states)).sum().backward()  # type: ignore[no-untyped-call]
    silent = [
        name
        for name, parameter in encoder.named_parameters()
        if not name.startswith(("convolutions", "latent_norm"))
        and (parameter.grad is None or not bool(parameter.grad.any()))
    ]
    # A bias of the keys moves all logits of a query alike; the table holds distances that do not occur here.
    assert silent == []


def test_layer_drop_leaves_the_table_to_other_layers() -> None:
    encoder = make(relative={"kind": "gated"}, layerdrop=0.6).train()
    table = encoder.get_parameter("relative.weight")
    for seed in range(20):
        torch.manual_seed(seed)
        is_dropped = [float(torch.rand(())) < 0.6 for _ in range(3)]
        torch.manual_seed(seed)
        table.grad = None
        states = encoder.context(latents_of(12)).last.values_ND
        (states * torch.randn_like(states)).sum().backward()  # type: ignore[no-untyped-call]
        assert table.grad is not None  # other processes wait for a gradient of every parameter
        assert bool(table.grad.any()) != all(is_dropped)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_follows_fp32(kind: str) -> None:
    encoder = make(**KINDS[kind])
    latents = latents_of(400, 31)
    expected = encoder.context(latents).last.values_ND
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(enabled):
            got = encoder.context(latents).last.values_ND
        assert float((got - expected).detach().norm() / expected.detach().norm()) < 0.05


def test_sinusoids_begin_behind_the_padding_index() -> None:
    table = sinusoids([3, 2], 8, first=2, device=torch.device("cpu"))
    rates = torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4])
    expected = torch.cat([(4 * rates).sin(), (4 * rates).cos()])
    torch.testing.assert_close(table[2], expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(table[3:], table[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_frames_gives_zero_gradients(kind: str) -> None:
    encoder = make(**KINDS[kind]).train()
    encoder.context(latents_of(0, 0), torch.zeros(0, dtype=torch.bool)).last.values_ND.sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in encoder.named_parameters():
        if not name.startswith(("convolutions", "latent_norm")):
            assert parameter.grad is not None, name
            assert not bool(parameter.grad.any()), name


@pytest.mark.parametrize(
    ("tree", "word"),
    [
        ({"position_layers": 2}, "position_layers must be 1"),
        ({"relative": {"kind": "gated", "num_buckets": 400, "max_distance": 100}}, "max_distance must be above"),
        ({"relative": {"kind": "gated", "num_buckets": 10}}, "multiple of 4"),
        ({"relative": {"kind": "rotary"}}, "gated"),
    ],
)
def test_configurations_that_make_no_sense(tree: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        WaveConfig.model_validate(tree)


def quantizer_heads(latent: int, width: int, codes: int, final: int) -> int:
    """Parameters of wav2vec 2.0's heads: quantizer of 2×320 codes, projections of targets and of the context."""
    quantizer = latent * 640 + 640 + 320 * codes
    return quantizer + codes * final + final + width * final + final


def unit_heads(width: int, final: int, units: int = 500) -> int:
    """Parameters of HuBERT's heads."""
    return width * final + final + units * final


@pytest.mark.parametrize(
    ("name", "heads", "millions"),
    [
        # As published with the heads of pretraining (WavLM's table 1; contrastive.md 5), or without them (model cards).
        ("wav2vec2-base", quantizer_heads(512, 768, 256, 256), 95.04),
        ("xlsr-53", quantizer_heads(512, 1024, 768, 768), 317.4),
        ("xls-r-300m", quantizer_heads(512, 1024, 768, 768), 317.4),
        ("xls-r-1b", quantizer_heads(512, 1280, 1024, 1024), 965.5),
        ("xls-r-2b", quantizer_heads(512, 1920, 1024, 1024), 2162.9),
        ("hubert-base", 0, 94.37),
        ("hubert-large", 0, 315.4),
        ("hubert-xlarge", 0, 962.5),
        ("wavlm-base", unit_heads(768, 256), 94.70),
        ("wavlm-base-plus", unit_heads(768, 256), 94.70),
        ("wavlm-large", unit_heads(1024, 768), 316.62),
        ("data2vec-base", 0, 93.16),
        ("data2vec-large", 0, 313.3),
        ("unispeech-large", quantizer_heads(512, 1024, 768, 768), 317.4),
        ("unispeech-sat-base", 0, 94.37),
        ("unispeech-sat-base-plus", 0, 94.37),
        ("unispeech-sat-large", 0, 315.4),
    ],
)
def test_published_sizes_without_allocating_them(name: str, heads: int, millions: float) -> None:
    with torch.device("meta"):
        encoder = build_encoder(preset(name))
    count = sum(parameter.numel() for parameter in encoder.parameters()) + heads
    # Tables print two or four digits behind the point, rounded or cut.
    assert count / 1e6 == pytest.approx(millions, abs=0.05 if round(millions, 1) == millions else 0.01)
