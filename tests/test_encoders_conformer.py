"""Conformers: batches against each utterance alone, slow oracles for convolution and positions, batch norm, published sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.core.errors import ConfigError
from isogloss.core.types import Packed
from isogloss.encoders.base import Encoder
from isogloss.encoders.conformer import ConformerConfig, ConformerEncoder
from isogloss.encoders.presets import build_encoder, preset
from isogloss.encoders.wave_conformer import WaveConformerConfig
from isogloss.nn.batch_norm import FrameBatchNorm, step_statistics
from isogloss.nn.depthwise import DepthwiseConv
from isogloss.nn.relative import RelativeAttention, position_table
from isogloss.nn.subsampling import ConvSubsampling, stack_frames
from objective_cases import CONFORMER

LENGTHS = [16000, 9000, 500, 12345, 20000, 300]
WAVE = WaveConformerConfig(
    conv_channels=(16,) * 7,
    width=32,
    num_layers=2,
    num_heads=4,
    ffn_width=48,
    kernel=7,
    dropout=0.0,
    attention_dropout=0.0,
    conv_dropout=0.0,
)
VARIANTS: dict[str, ConformerConfig | WaveConformerConfig] = {
    "convolutions": CONFORMER.model_copy(update={"subsampling": "conv", "conv_channels": (4, 6), "positions": "none"}),
    "convolutions, batch norm": CONFORMER.model_copy(
        update={"subsampling": "conv", "conv_channels": (4, 6), "conv_norm": "batch", "final_norm": True}
    ),
    "stack of 4, relative": CONFORMER.model_copy(update={"num_stacked": 4}),
    "kaldi, relative key, causal": CONFORMER.model_copy(
        update={"filterbank": "kaldi16", "positions": "relative_key", "causal_convolution": True, "kernel": 6}
    ),
    "kaldi, rotary": CONFORMER.model_copy(update={"filterbank": "kaldi16", "positions": "rotary"}),
    "wave, group norm, rotary": WAVE.model_copy(
        update={"conv_features_norm": "group", "conv_bias": False, "positions": "rotary"}
    ),
    "wave, batch norm, relative": WAVE,
}


def random_encoder(config: Any) -> Encoder:
    """Weights, biases and stored statistics that no initialisation has."""
    torch.manual_seed(0)
    encoder = build_encoder(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            spread = 0.2 if parameter.dim() <= 1 else 0.2 * float(parameter.std())
            parameter.add_(spread * torch.randn_like(parameter))
        for name, buffer in encoder.named_buffers():
            buffer.copy_(0.5 + torch.rand_like(buffer) if name.endswith("var") else torch.randn_like(buffer))
    return encoder.eval()


def waves(lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, generator=generator) * (1 + torch.rand(1, generator=generator)) for n in lengths]


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_batch_gives_what_each_utterance_gives_alone(name: str) -> None:
    encoder, waveforms = random_encoder(VARIANTS[name]), waves(LENGTHS)
    together = [state.split() for state in encoder(waveforms).states]
    assert len(together) == 3
    for index, waveform in enumerate(waveforms):
        alone = encoder([waveform]).states
        assert len(alone[0].values_ND) == encoder.num_frames(len(waveform))
        for state, own in zip(together, alone, strict=True):
            torch.testing.assert_close(state[index], own.values_ND, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_blocks_of_queries_and_all_at_once_give_the_same(name: str) -> None:
    """With a gradient attention takes all queries at once, without one 256 at a time: 14 s are three blocks of 50 Hz frames."""
    encoder, (waveform,) = random_encoder(VARIANTS[name]), waves([14 * 16000])
    whole = encoder([waveform]).last.values_ND
    with torch.no_grad():
        blocks = encoder([waveform]).last.values_ND
    assert whole.requires_grad
    torch.testing.assert_close(whole.detach(), blocks, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True])
def test_depthwise_convolution_equals_torch_per_utterance(is_causal: bool) -> None:
    torch.manual_seed(0)
    conv, sizes = DepthwiseConv(6, 5, is_causal=is_causal), [7, 0, 1, 12]
    values_ND = torch.randn(sum(sizes), 6)
    padding = (4, 0) if is_causal else (2, 2)
    expected = torch.cat(
        [
            F.conv1d(F.pad(part.t(), padding)[None], conv.weight, groups=6)[0].t()
            for part in values_ND.split(sizes)
            if len(part)
        ]
    )
    torch.testing.assert_close(conv(values_ND, sizes), expected)
    assert conv(values_ND[:0], [0, 0]).shape == (0, 6)


def slow_attention(attention: RelativeAttention, values_SD: Tensor) -> Tensor:
    """Attention of one utterance, logit by logit, from the formulas."""
    num_frames, width = values_SD.shape
    heads, head = attention.num_heads, width // attention.num_heads
    rates = torch.tensor([10_000.0 ** (-2 * i / width) for i in range(width // 2)])

    def turned(row: Tensor, time: int) -> Tensor:
        parts = []
        for piece in row.split(head):
            angles = torch.tensor([time * 10_000.0 ** (-2 * i / head) for i in range(head // 2)])
            first, second = piece[: head // 2], piece[head // 2 :]
            parts += [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()]
        return torch.cat(parts)

    w_q, w_k, w_v = attention.qkv.weight.split(width)
    b_q, b_k, b_v = attention.qkv.bias.split(width)
    is_rotary = attention.positions == "rotary"
    inputs = torch.stack([turned(row, t) for t, row in enumerate(values_SD)]) if is_rotary else values_SD
    q, k, v = inputs @ w_q.t() + b_q, inputs @ w_k.t() + b_k, values_SD @ w_v.t() + b_v
    out = []
    for h in range(heads):
        part = slice(h * head, (h + 1) * head)
        logits = torch.zeros(num_frames, num_frames)
        for i in range(num_frames):
            for j in range(num_frames):
                query, logit = q[i, part], q[i, part] @ k[j, part]
                if attention.positions == "relative":
                    angles = (i - j) * rates
                    sinusoids = torch.stack([angles.sin(), angles.cos()], dim=1).flatten()
                    distance = (attention.distance.weight @ sinusoids)[part]
                    logit = (query + attention.content_bias_Hd[h]) @ k[j, part]
                    logit = logit + (query + attention.distance_bias_Hd[h]) @ distance
                if attention.positions == "relative_key":
                    row = min(max(j - i, -attention.left), attention.right) + attention.left
                    logit = logit + query @ attention.distance_keys_Pd[row]
                logits[i, j] = logit / head**0.5
        out.append(logits.softmax(1) @ v[:, part])
    mixed: Tensor = attention.out(torch.cat(out, dim=1))
    return mixed


@pytest.mark.parametrize("positions", ["relative", "rotary", "relative_key", "none"])
@torch.no_grad()
def test_attention_equals_the_formulas(positions: Any) -> None:
    torch.manual_seed(0)
    attention, sizes = RelativeAttention(16, 2, 0.0, positions=positions, left=3, right=1), [9, 4, 0, 1]
    nn.init.normal_(attention.qkv.weight)
    values_ND = torch.randn(sum(sizes), 16)
    table = position_table(positions, 16, 2, sizes, values_ND.device)
    got = attention(values_ND, sizes, table)
    expected = torch.cat([slow_attention(attention, part) for part in values_ND.split(sizes) if len(part)])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_attention_dropout_is_right_on_average() -> None:
    torch.manual_seed(0)
    attention = RelativeAttention(16, 2, 0.3, positions="relative", left=3, right=1)
    values_ND = torch.randn(12, 16)
    table = position_table("relative", 16, 2, [12], values_ND.device)
    with torch.no_grad():
        mean = torch.stack([attention(values_ND, [12], table) for _ in range(4000)]).mean(0)
        expected = attention.eval()(values_ND, [12], table)
    assert float((mean - expected).abs().max()) < 0.05 * float(expected.std())


def test_batch_norm_sees_real_frames_in_training_and_its_store_in_evaluation() -> None:
    """The reference is torch's own, fed all frames of the batch and nothing else."""
    torch.manual_seed(0)
    ours, theirs = FrameBatchNorm(5), nn.BatchNorm1d(5)
    for _ in range(3):
        values_ND = torch.randn(11, 5) * 2 + 1
        torch.testing.assert_close(ours(values_ND), theirs(values_ND))
        step_statistics(ours)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval()
    together = ours(values_ND)
    torch.testing.assert_close(together[3:4], ours(values_ND[3:4]))
    torch.testing.assert_close(together, theirs.eval()(values_ND))
    ours.train()
    before = ours.running_mean.clone()
    assert torch.isfinite(ours(values_ND[:1])).all()  # one frame has no variance
    assert ours(values_ND[:0]).shape == (0, 5)
    step_statistics(ours)
    assert torch.equal(ours.running_mean, before)


def test_a_frozen_batch_norm_is_the_one_of_evaluation_and_a_pass_without_gradients_moves_nothing() -> None:
    torch.manual_seed(0)
    norm, values_ND = FrameBatchNorm(5), torch.randn(11, 5) * 2 + 1
    with torch.no_grad():
        norm(values_ND)
    step_statistics(norm)
    assert torch.equal(norm.running_mean, torch.zeros(5))
    norm.requires_grad_(False)
    torch.testing.assert_close(norm(values_ND), values_ND / (1 + norm.eps) ** 0.5)
    step_statistics(norm)
    assert torch.equal(norm.running_mean, torch.zeros(5))


def test_stored_statistics_of_an_update_do_not_depend_on_how_it_was_divided_or_recomputed() -> None:
    torch.manual_seed(0)
    divided, recomputed = FrameBatchNorm(5), FrameBatchNorm(5)
    mean_D, variance_D = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    for _ in range(3):
        bins = (3 * torch.randn(40, 5) + 10 * torch.rand(5)).split([7, 1, 32])
        for part_ND in bins:
            divided(part_ND)
            recomputed(part_ND)
            recomputed(part_ND)
            torch.testing.assert_close(divided.running_mean.double(), mean_D)  # it stands still within an update
        divided(torch.full((3, 5), torch.nan))
        step_statistics(divided)
        step_statistics(recomputed)
        # by hand: one frame has no variance and is no part of it
        of_bins = torch.stack([part_ND.double().mean(0) for part_ND in (bins[0], bins[2])])
        within_D = (7 * bins[0].double().var(0) + 32 * bins[2].double().var(0)) / 39
        shares = torch.tensor([7 / 39, 32 / 39], dtype=torch.float64)
        mean_of_all_D = shares @ of_bins
        between_D = shares @ (of_bins - mean_of_all_D).square()
        mean_D = 0.9 * mean_D + 0.1 * mean_of_all_D
        variance_D = 0.9 * variance_D + 0.1 * (within_D + between_D)
    for norm in (divided, recomputed):
        torch.testing.assert_close(norm.running_mean.double(), mean_D, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), variance_D, rtol=1e-5, atol=1e-5)
    assert set(divided.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


def test_subsampling_equals_two_convolutions_of_each_utterance() -> None:
    torch.manual_seed(0)
    subsampling, sizes = ConvSubsampling(10, (3, 4)), [23, 6, 7, 40, 0]
    frames = Packed(torch.randn(sum(sizes), 10), torch.tensor(sizes))
    got = subsampling(frames)
    assert got.sizes == [5, 0, 1, 9, 0]
    for part, own in zip(frames.split(), got.split(), strict=True):
        if len(own):
            image = F.relu(subsampling.second(F.relu(subsampling.first(part[None, None]))))
            torch.testing.assert_close(own, image[0].transpose(0, 1).flatten(1))
    with torch.no_grad():
        torch.testing.assert_close(got.values_ND, subsampling(frames).values_ND)
    assert stack_frames(frames, 4).sizes == [5, 1, 1, 10, 0]
    assert torch.equal(stack_frames(frames, 4).values_ND[1], frames.values_ND[4:8].flatten())


@torch.no_grad()
def test_a_causal_convolution_sees_no_later_frame() -> None:
    """Attention sees all; with the values of attention at zero, only the past may matter."""
    encoder = random_encoder(VARIANTS["kaldi, relative key, causal"])
    assert isinstance(encoder, ConformerEncoder)
    for layer in encoder.layers:
        layer.get_submodule("attention.out").weight.zero_()
    latents_SD = torch.randn(30, encoder.latent_width)
    changed_SD = latents_SD.clone()
    changed_SD[20] += 1
    first, second = (encoder.context(Packed.from_list([part])).last.values_ND for part in (latents_SD, changed_SD))
    is_changed_S = ((first - second).abs() > 1e-6).any(1)
    assert is_changed_S.nonzero().flatten().tolist() == list(range(20, 30))  # two layers of kernel 6 reach 10 frames on


def test_masked_frames_are_replaced_and_their_latents_unseen() -> None:
    encoder = random_encoder(CONFORMER)
    latents = encoder.frontend(Packed.from_list(waves([16000]))).latents
    is_masked_N = torch.arange(len(latents.values_ND)) % 3 == 0
    other = latents.with_values(torch.where(is_masked_N[:, None], 7.0, latents.values_ND))
    masked = encoder.context(latents, is_masked_N)
    assert torch.equal(masked.last.values_ND, encoder.context(other, is_masked_N).last.values_ND)
    torch.testing.assert_close(masked.states[0].values_ND[0], encoder.get_parameter("mask_embedding_D"))


# In the publications' words; what transformers has a class for is counted exactly in test_hub_conformer.py.
PUBLISHED = {
    "w2v-conformer-xl": 0.6e9,  # arXiv 2010.10504, table 1
    "w2v-conformer-xxl": 1.0e9,
    "bigssl-xl": 0.6e9,  # arXiv 2109.13226
    "bigssl-xxl": 1.0e9,
    "bigssl-g": 8.0e9,
    "w2v-bert-xl": 0.6e9,  # arXiv 2108.06209, table 1
    "w2v-bert-xxl": 1.0e9,
    "w2v-bert-600m": 0.6e9,
    "w2v-bert-2.0": 580.5e6,
    "best-rq-600m": 0.6e9,  # arXiv 2202.01855, §4.1
    "wav2vec2-conformer-large": 618.5e6,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        encoder = build_encoder(preset(name))
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(PUBLISHED[name], rel=0.04)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "multiple of num_heads"),
        ({"kernel": 4}, "kernel must be odd"),
        ({"positions": "rotary", "width": 30, "num_heads": 2}, "even for rotary"),
        ({"filterbank": "kaldi16", "num_deltas": 1}, "no deltas"),
        ({"position": "none"}, "positions"),
    ],
)
def test_faults_of_the_configuration_are_told(changes: dict[str, Any], message: str) -> None:
    from isogloss.core.config import parse

    with pytest.raises(ConfigError, match=message):
        parse(ConformerConfig, CONFORMER.model_dump() | changes, "[encoder]")


def test_layer_drop_leaves_zero_gradients() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(CONFORMER.model_copy(update={"layerdrop": 0.999})).train()
    encoder(waves([8000])).last.values_ND.sum().backward()
    gradients = [parameter.grad for parameter in encoder.blocks()[0].parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    results = []
    for is_recomputed in (False, True):
        torch.manual_seed(0)
        encoder = build_encoder(CONFORMER.model_copy(update={"checkpoint_activations": is_recomputed})).train()
        encoder(waves([8000, 5000])).last.values_ND.square().sum().backward()
        results.append([p.grad for p in encoder.parameters()])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)
