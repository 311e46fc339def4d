"""The CPC encoder against plain torch layers, and what a frame may see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isogloss.core.errors import ConfigError
from isogloss.core.types import Packed
from isogloss.encoders.cpc import CpcConfig, CpcEncoder


def tiny(**changes: object) -> CpcEncoder:
    torch.manual_seed(0)
    encoder = CpcEncoder(CpcConfig.model_validate({"channels": 8, "width": 6} | changes))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()


MODIFIED = tiny()
ORIGINAL = tiny(norm="none", recurrent="gru", channels=12)


def reference(encoder: CpcEncoder, waveform_T: Tensor) -> tuple[Tensor, Tensor]:
    """The released definition: padded convolutions, norm by its formula, ReLU, recurrent network."""
    values = waveform_T[None, None]
    config = encoder.config
    for index, conv in enumerate(encoder.convs):
        values = F.conv1d(
            values, conv.weight.permute(0, 2, 1), conv.bias, config.strides[index], config.paddings[index]
        )
        if config.norm == "channel":
            norm = encoder.norms[index]
            mean, variance = values.mean(1, keepdim=True), values.var(1, unbiased=True, keepdim=True)
            values = (values - mean) / torch.sqrt(variance + 1e-5) * norm.weight[:, None] + norm.bias[:, None]
        values = F.relu(values)
    z = values.transpose(1, 2)
    return z[0], encoder.recurrent.network(z)[0][0]


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(150, 32_000), min_size=1, max_size=4),
    st.sampled_from([MODIFIED, ORIGINAL]),
    st.integers(0, 1000),
)
@torch.no_grad()
def test_a_batch_equals_the_definition_for_each_utterance(sizes: list[int], encoder: CpcEncoder, seed: int) -> None:
    torch.manual_seed(seed)
    waveforms = [torch.randn(n) for n in sizes]
    z, c = encoder(waveforms).states
    for index, waveform in enumerate(waveforms):
        if not encoder.num_frames(len(waveform)):
            assert z.sizes[index] == 0
            continue
        expected_z, expected_c = reference(encoder, waveform)
        torch.testing.assert_close(z.split()[index], expected_z, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(c.split()[index], expected_c, atol=1e-5, rtol=1e-4)


def test_published_frame_counts() -> None:
    assert [MODIFIED.num_frames(n) for n in (20_480, 16_000, 15_999)] == [128, 100, 100]


def test_a_frame_sees_its_window_and_nothing_else() -> None:
    # Released code (contrastive.md §1.2): samples 160t − 153 … 160t + 311, and no other utterance.
    MODIFIED.train()
    waveforms = [torch.randn(n).requires_grad_() for n in (20_480, 5_000)]
    z = MODIFIED.frontend(Packed.from_list(waveforms)).latents
    t = 60
    z.split()[0][t].sum().backward()
    seen = waveforms[0].grad.nonzero()
    assert int(seen.min()) == 160 * t - 153
    assert int(seen.max()) == 160 * t + 311
    assert waveforms[1].grad is None or not waveforms[1].grad.any()
    MODIFIED.eval()


def test_the_context_is_causal() -> None:
    latents = torch.randn(20, 8, requires_grad=True)
    c = MODIFIED.context(Packed(latents, torch.tensor([12, 8]))).last
    c.values_ND[5].sum().backward()
    assert latents.grad[:6].any(dim=1).all()
    assert not latents.grad[6:].any()


@pytest.mark.parametrize("norm", ["channel", "none"])
def test_every_parameter_has_a_gradient(norm: str) -> None:
    encoder = tiny(norm=norm).train()
    encoder([torch.randn(3000), torch.randn(1000)]).last.values_ND.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_masks_need_an_embedding() -> None:
    latents = Packed(torch.randn(4, 8), torch.tensor([4]))
    is_masked_N = torch.tensor([True, False, False, True])
    with pytest.raises(ConfigError, match="mask_embedding"):
        MODIFIED.context(latents, is_masked_N)
    encoder = tiny(mask_embedding=True)
    states = encoder.context(latents, is_masked_N).states
    torch.testing.assert_close(states[0].values_ND[0], encoder.mask_embedding_D)


def test_bf16_is_finite() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = MODIFIED([torch.randn(3000), torch.randn(1000)]).last.values_ND
    assert torch.isfinite(out).all()
