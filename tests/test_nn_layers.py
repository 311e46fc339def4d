"""Leaf layers against torch's own layers, slow definitions, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.parametrizations import weight_norm

from isogloss.core.lengths import ConvGeometry
from isogloss.nn.attention import PackedAttention, packed_attention
from isogloss.nn.convolution import StridedConv, grouped_rows_product, strided_conv
from isogloss.nn.dropout import dropout, scale_gradient, scaled_keep_mask
from isogloss.nn.norm import ChannelNorm, FirstConv, UtteranceNorm
from isogloss.nn.position import PositionalConv, grouped_conv
from isogloss.nn.product import is_fast
from isogloss.nn.recurrent import PackedRecurrent
from isogloss.nn.stream import StreamLayout
from isogloss.nn.transformer import TransformerLayer

WAV2VEC2 = ConvGeometry((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
CPC = ConvGeometry((10, 8, 4, 4, 4), (5, 4, 2, 2, 2), (3, 2, 1, 1, 1))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (8, 4), (4, 2), (5, 2), (1, 1), (3, 1), (2, 3)])
@pytest.mark.parametrize("rows", [11, 12, 40])
def test_strided_conv_equals_conv1d(kernel: int, stride: int, rows: int) -> None:
    torch.manual_seed(kernel * 100 + stride)
    values, weight, bias = torch.randn(rows, 6), torch.randn(7, kernel, 6), torch.randn(7)
    expected = F.conv1d(values.t()[None], weight.permute(0, 2, 1), bias, stride)[0].t()
    torch.testing.assert_close(strided_conv(values, weight, bias, stride), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (8, 4), (2, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_strided_conv_gradients(kernel: int, stride: int, channels: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(13, channels, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, kernel, channels, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w, b: strided_conv(v, w, b, stride), (values, weight, bias))
    assert torch.autograd.gradcheck(lambda v, w: strided_conv(v, w, None, stride), (values, weight))


def test_strided_conv_follows_autocast() -> None:
    conv = StridedConv(4, 8, 3, 2, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(torch.randn(20, 4))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32


def test_grouped_rows_product_gradients() -> None:
    torch.manual_seed(0)
    values = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    matrices = torch.randn(3, 3, 4, dtype=torch.float64, requires_grad=True)
    rows = [4, 2, 3]
    out = grouped_rows_product(values, matrices, rows)
    expected = torch.cat([v @ m for v, m in zip(values.split(rows), matrices, strict=True)])
    torch.testing.assert_close(out, expected)
    assert torch.autograd.gradcheck(lambda v, m: grouped_rows_product(v, m, rows), (values, matrices))


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_normalized_first_conv_equals_conv_and_group_norm(offset: float) -> None:
    torch.manual_seed(0)
    signals = [torch.randn(n, dtype=torch.float64) * 0.1 + offset for n in (100, 57)]
    norm = UtteranceNorm(6).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    weight = torch.randn(6, 10, dtype=torch.float64, requires_grad=True)
    stream = torch.cat([signals[0], signals[1], torch.zeros(3, dtype=torch.float64)])
    out = FirstConv.of([s.unfold(0, 10, 5) for s in signals], weight, norm, 5)(stream, [20, 12])
    for signal, start in zip(signals, (0, 20), strict=True):
        convolved = F.conv1d(signal[None, None], weight[:, None], stride=5)
        expected = F.group_norm(convolved, 6, norm.weight, norm.bias)[0].t()
        torch.testing.assert_close(out[start : start + len(expected)], expected, atol=1e-9, rtol=1e-7)

    def compute(weight: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        scaled = UtteranceNorm(6)
        del scaled.weight, scaled.bias
        scaled.weight, scaled.bias = gain, bias  # type: ignore[assignment]
        return FirstConv.of([s.unfold(0, 10, 5) for s in signals], weight, scaled, 5)(stream, [20, 12])

    assert torch.autograd.gradcheck(compute, (weight, norm.weight, norm.bias), atol=1e-4)


def test_channel_norm_has_the_unbiased_variance() -> None:
    torch.manual_seed(0)
    norm = ChannelNorm(16)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    values = torch.randn(5, 16) * 0.01  # small, so that ε counts
    mean, variance = values.mean(1, keepdim=True), values.var(1, unbiased=True, keepdim=True)
    expected = (values - mean) / torch.sqrt(variance + 1e-5) * norm.weight + norm.bias
    torch.testing.assert_close(norm(values), expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(F.layer_norm(values, (16,), norm.weight, norm.bias), expected, rtol=1e-3)


def test_positional_conv_equals_weight_normed_conv1d() -> None:
    torch.manual_seed(0)
    ours = PositionalConv(12, 8, 3)
    torch.nn.init.normal_(ours.gain_K)
    torch.nn.init.normal_(ours.bias)
    theirs = weight_norm(torch.nn.Conv1d(12, 12, 8, padding=4, groups=3), dim=2)
    with torch.no_grad():
        theirs.parametrizations.weight.original0.copy_(ours.gain_K.view(1, 1, -1))
        theirs.parametrizations.weight.original1.copy_(ours.direction)
        theirs.bias.copy_(ours.bias)
    parts = [torch.randn(n, 12) for n in (1, 9, 3)]
    out = ours(torch.cat(parts), [1, 9, 3]).split([1, 9, 3])
    for part, got in zip(parts, out, strict=True):
        expected = F.gelu(theirs(part.t()[None])[0, :, :-1]).t()
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_positional_conv_starts_as_the_paper_says() -> None:
    torch.manual_seed(0)
    conv = PositionalConv(768, 128, 16)
    # N(0, √(4/(128·768))) = 0.00638; 4.7 million draws fix the deviation to 0.03 %.
    assert math.isclose(float(conv.weight().detach().std()), math.sqrt(4 / (128 * 768)), rel_tol=2e-3)


@pytest.mark.parametrize("sizes", [[5, 1, 7], [4, 4, 4], [3, 0, 2]])
def test_packed_attention_equals_its_definition(sizes: list[int]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(sizes), 2, 8) for _ in range(3))
    got = packed_attention(q, k, v, sizes, 0.0).split(sizes)
    for qs, ks, vs, out in zip(q.split(sizes), k.split(sizes), v.split(sizes), got, strict=True):
        weights = torch.einsum("shd,thd->hst", qs, ks).div(math.sqrt(8)).softmax(-1)
        torch.testing.assert_close(out, torch.einsum("hst,thd->shd", weights, vs), atol=1e-5, rtol=1e-5)


def test_long_utterances_without_gradients_are_attended_by_blocks() -> None:
    torch.manual_seed(0)
    sizes = [700, 20, 301]
    q, k, v = (torch.randn(sum(sizes), 2, 16) * 2 for _ in range(3))
    expected = packed_attention(q, k, v, sizes, 0.0)
    with torch.no_grad():
        torch.testing.assert_close(packed_attention(q, k, v, sizes, 0.0), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_one_kernel_for_all_lengths_equals_the_loop() -> None:
    torch.manual_seed(0)
    sizes = [50, 1, 77]
    q, k, v = (torch.randn(128, 4, 64) for _ in range(3))
    expected = packed_attention(q, k, v, sizes, 0.0)
    got = packed_attention(*(part.cuda().bfloat16() for part in (q, k, v)), sizes, 0.0)
    # Inputs and output are rounded to 8 bits.
    torch.testing.assert_close(got.float().cpu(), expected, atol=3e-2, rtol=3e-2)


def test_attention_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(6, 2, 4) for _ in range(3))
    draws = torch.stack([packed_attention(q, k, v, [4, 2], 0.3) for _ in range(2000)])
    # The deviation of a mean of 2000 draws is about 0.02 here.
    torch.testing.assert_close(draws.mean(0), packed_attention(q, k, v, [4, 2], 0.0), atol=0.12, rtol=0)
    assert float(draws.std(0).min()) > 0


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    mask = scaled_keep_mask((1000, 1001), 0.1)
    values = mask.unique()
    assert values.tolist() == pytest.approx([0.0, 65536 / (65536 - 6554)])
    assert float((mask == 0).float().mean()) == pytest.approx(0.1, abs=1.5e-3)  # 5 deviations of 0.0003
    assert float(mask.mean()) == pytest.approx(1.0, abs=2e-3)
    ones = torch.ones(7, requires_grad=True)
    dropped = dropout(ones, 0.5, training=True)
    dropped.sum().backward()
    torch.testing.assert_close(ones.grad, dropped.detach())
    assert dropout(ones, 0.5, training=False) is ones


def test_dropout_draws_are_independent_and_follow_the_global_seed() -> None:
    torch.manual_seed(3)
    first = scaled_keep_mask((40_000,), 0.5)
    second = scaled_keep_mask((40_000,), 0.5)
    torch.manual_seed(3)
    torch.testing.assert_close(scaled_keep_mask((40_000,), 0.5), first)
    # Neighbours share a 64-bit draw; correlations have deviation 1/√40000 = 0.005.
    for other in (second, first.roll(1), first.roll(2), first.roll(3)):
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.025


def test_scale_gradient() -> None:
    values = torch.randn(4, requires_grad=True)
    scaled = scale_gradient(values, 0.1)
    torch.testing.assert_close(scaled, values)
    scaled.sum().backward()
    torch.testing.assert_close(values.grad, torch.full((4,), 0.1))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_starts_anew_for_each_utterance(kind: str) -> None:
    torch.manual_seed(0)
    network = PackedRecurrent(kind, 4, 5, 2)
    parts = [torch.randn(n, 4) for n in (3, 0, 6, 1)]
    got = network(torch.cat(parts), [3, 0, 6, 1]).split([3, 0, 6, 1])
    for part, out in zip(parts, got, strict=True):
        expected = network.network(part[None])[0][0] if len(part) else torch.zeros(0, 5)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
def test_layer_drop_is_the_identity_with_zero_gradients(norm_first: bool) -> None:
    layer = TransformerLayer(
        8, 2, 16, norm_first=norm_first, dropout=0.1, attention_dropout=0.0, activation_dropout=0.0, eps=1e-5
    )
    values = torch.randn(6, 8)
    out = layer(values, [4, 2], True)
    torch.testing.assert_close(out, values)
    out.sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_attention_has_one_product_for_queries_keys_and_values() -> None:
    torch.manual_seed(0)
    ours = PackedAttention(8, 2, 0.0)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    values = torch.randn(5, 8)
    expected = theirs(values[None], values[None], values[None])[0][0]
    torch.testing.assert_close(ours(values, [5]), expected, atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.sampled_from([WAV2VEC2, CPC]))
def test_stream_layout_gives_each_utterance_rows_of_its_own(sizes: list[int], geometry: ConvGeometry) -> None:
    layout = StreamLayout.of(sizes, geometry)
    assert list(layout.frames_B) == [geometry.num_frames(n) for n in sizes]
    num_rows = layout.num_samples
    stream = layout.pack(torch.arange(1.0, sum(sizes) + 1))
    assert all(slots <= n + 2 for slots, n in zip(layout.num_slots_B, layout.frames_B, strict=True))
    assert len(stream) == num_rows
    assert stream.count_nonzero() == sum(n for n, frames in zip(sizes, layout.frames_B, strict=True) if frames)
    for depth, (kernel, stride) in enumerate(zip(geometry.kernels, geometry.strides, strict=True)):
        spans = sorted(
            (start, start + n)
            for start, n, frames in zip(layout.first_row_B(depth), layout.rows_LB[depth], layout.frames_B, strict=True)
            if frames
        )
        padding = geometry.paddings[depth]
        position = 0
        for start, end in spans:  # at least the padding of silence before and between
            assert start >= position + padding
            position = end
        assert num_rows >= position
        num_rows = (num_rows - kernel) // stride + 1 if num_rows else 0
    assert not any(layout.frames_B) or num_rows >= max(
        first + n for first, n in zip(layout.first_slot_B, layout.frames_B, strict=True) if n
    )


def test_positional_conv_on_channels_last_has_the_gradients_of_conv1d() -> None:
    torch.manual_seed(0)
    values, weight, bias = torch.randn(300, 64), torch.randn(64, 16, 8), torch.randn(64)
    inputs = [part.requires_grad_() for part in (values, weight, bias)]
    assert is_fast(values, weight) or not torch.backends.mkldnn.is_available()
    ours = grouped_conv(values, weight, bias, 4)
    theirs = F.conv1d(values.t()[None], weight, bias, groups=4)[0].t()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    weights = torch.randn_like(ours)
    for got, expected in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)
