"""The wave transformer: what its docstrings and the papers promise, apart from parity (tests/test_hub_huggingface.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isogloss.core.errors import ConfigError
from isogloss.core.types import Packed
from isogloss.encoders import frontends
from isogloss.encoders.presets import build_encoder, preset, preset_names
from isogloss.encoders.wave import WaveConfig, WaveEncoder

TINY: dict[str, Any] = {
    "conv_channels": (8,) * 7,
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_width": 24,
    "position_kernel": 128,
    "position_groups": 4,
}
LAYER: dict[str, Any] = {"conv_norm": "layer", "conv_bias": True, "norm_first": True}


def tiny(**changes: Any) -> WaveEncoder:
    torch.manual_seed(0)
    encoder = WaveEncoder(WaveConfig.model_validate(TINY | changes))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / b.norm()) if b.numel() else 0.0


GROUP_MODEL, LAYER_MODEL = tiny(), tiny(**LAYER)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(3_200, 48_000), min_size=2, max_size=4),
    st.sampled_from([GROUP_MODEL, LAYER_MODEL]),
    st.integers(0, 1000),
)
@torch.no_grad()
def test_an_utterance_does_not_depend_on_its_batch(sizes: list[int], encoder: WaveEncoder, seed: int) -> None:
    torch.manual_seed(seed)
    waveforms = [torch.randn(n) * 10 ** float(torch.randn(())) for n in sizes]
    together = encoder(waveforms)
    for index, waveform in enumerate(waveforms):
        alone = encoder([waveform])
        assert len(alone.states) == 3
        for state, expected in zip(together.states, alone.states, strict=True):
            assert relative_difference(state.split()[index], expected.values_ND) < 1e-5


@pytest.mark.parametrize("encoder", [GROUP_MODEL, LAYER_MODEL])
@torch.no_grad()
def test_any_number_of_samples(encoder: WaveEncoder) -> None:
    torch.manual_seed(0)
    sizes = [0, 1, 399, 400, 401, 639, 640, 719, 720, 721, 959, 960, 1039, 1040]
    waveforms = [torch.randn(n) for n in sizes]
    together = encoder(waveforms).last
    assert together.sizes == [0 if n < 400 else (n - 400) // 320 + 1 for n in sizes]
    for part, waveform in zip(together.split(), waveforms, strict=True):
        torch.testing.assert_close(part, encoder([waveform]).last.values_ND, atol=1e-5, rtol=1e-4)
    assert encoder([torch.randn(399)]).last.values_ND.shape == (0, 16)


@pytest.mark.parametrize("encoder", [GROUP_MODEL, LAYER_MODEL])
def test_pieces_of_the_stream_make_no_difference(encoder: WaveEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    audio = Packed.from_list([torch.randn(n) for n in (4000, 399, 1039, 7000, 721)])
    expected = encoder.convolutions(audio).values_ND.detach()  # with gradients: all at once
    for frames in (1, 3, 7, 100):
        monkeypatch.setitem(frontends._PIECE_FRAMES, True, frames)
        with torch.no_grad():
            torch.testing.assert_close(encoder.convolutions(audio).values_ND, expected, atol=1e-5, rtol=1e-5)


def test_published_frame_counts() -> None:
    # methods of fairseq: 250 000 samples make 781 frames, 320 000 make 999, 16 000 make 49.
    assert [GROUP_MODEL.num_frames(n) for n in (250_000, 320_000, 16_000, 399)] == [781, 999, 49, 0]


@torch.no_grad()
def test_accepted_forms_of_audio_agree() -> None:
    waveforms = [torch.randn(1000), torch.randn(700)]
    expected = GROUP_MODEL(waveforms).last
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    for other in (
        GROUP_MODEL(padded, torch.tensor([1000, 700])).last,
        GROUP_MODEL(Packed.from_list(waveforms)).last,
    ):
        torch.testing.assert_close(other.values_ND, expected.values_ND)
    assert expected.padded().shape == (2, 2, 16)


def test_masked_latents_do_not_matter_and_their_place_does() -> None:
    torch.manual_seed(0)
    latents = Packed(torch.randn(9, 8), torch.tensor([5, 4]))
    is_masked_N = torch.tensor([0, 1, 1, 0, 0, 0, 0, 1, 0], dtype=torch.bool)
    changed = latents.with_values(torch.where(is_masked_N[:, None], torch.randn(9, 8), latents.values_ND))
    with torch.no_grad():
        expected = GROUP_MODEL.context(latents, is_masked_N).last.values_ND
        torch.testing.assert_close(GROUP_MODEL.context(changed, is_masked_N).last.values_ND, expected)
        assert not torch.allclose(GROUP_MODEL.context(latents).last.values_ND, expected, atol=1e-2)


@pytest.mark.parametrize("changes", [{}, LAYER])
@pytest.mark.parametrize("is_masked", [False, True])
def test_every_parameter_has_a_gradient(changes: dict[str, Any], is_masked: bool) -> None:
    encoder = tiny(**changes).train()
    frontend = encoder.frontend(Packed.from_list([torch.randn(2000), torch.randn(900)]))
    mask = torch.arange(len(frontend.latents.values_ND)) % 2 == 0 if is_masked else None
    encoder.context(frontend.latents, mask).last.values_ND.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if name not in ("mask_embedding_D",):
            assert parameter.grad.any(), name


def test_gradient_scale_of_the_convolutions() -> None:
    gradients = []
    for scale in (1.0, 0.1):
        encoder = tiny(feature_gradient_scale=scale)
        torch.manual_seed(1)
        encoder([torch.randn(2000)]).last.values_ND.square().sum().backward()
        gradients.append((encoder.convolutions.convs[2].weight.grad, encoder.projection.weight.grad))
    torch.testing.assert_close(gradients[1][0], gradients[0][0] * 0.1)
    torch.testing.assert_close(gradients[1][1], gradients[0][1])
    frozen = tiny(feature_gradient_scale=0.0)
    assert not any(p.requires_grad for p in frozen.convolutions.parameters())


@pytest.mark.parametrize("changes", [{}, LAYER])
def test_checkpointed_activations_give_equal_gradients(changes: dict[str, Any]) -> None:
    gradients = []
    for checkpoint in (False, True):
        encoder = tiny(checkpoint_activations=checkpoint, layerdrop=0.5, **changes).train()
        torch.manual_seed(1)
        encoder([torch.randn(2000), torch.randn(800)]).last.values_ND.square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_dropouts_are_off_in_evaluation_and_on_in_training() -> None:
    waveforms = [torch.randn(2000)]
    for switch in ("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layerdrop"):
        off = dict.fromkeys(("dropout", "attention_dropout", "input_dropout", "layerdrop"), 0.0)
        encoder = tiny(**(off | {switch: 0.5}))
        with torch.no_grad():
            expected = encoder(waveforms).last.values_ND
            torch.testing.assert_close(encoder(waveforms).last.values_ND, expected)
            encoder.train()
            draws = [encoder(waveforms).last.values_ND for _ in range(4)]
        assert any(not torch.allclose(draw, expected, atol=1e-4) for draw in draws), switch


@pytest.mark.parametrize("changes", [{}, LAYER])
def test_bf16_stays_near_fp32(changes: dict[str, Any]) -> None:
    encoder = tiny(**changes)
    waveforms = [torch.randn(4000), torch.randn(900)]
    with torch.no_grad():
        expected = encoder(waveforms).last.values_ND
    with torch.autocast("cpu", torch.bfloat16):
        got = encoder(waveforms).last.values_ND
    # bf16 has 8 bits: 2⁻⁹ per rounding, through some twenty products.
    assert relative_difference(got.float(), expected) < 0.05
    got.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_prepare_normalises_where_the_model_expects_it() -> None:
    waveform = torch.randn(1000) * 0.01 + 0.5
    prepared = tiny(normalize_waveform=True).prepare(waveform)
    assert float(prepared.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(prepared.std(unbiased=False)) == pytest.approx(1.0, abs=2e-3)  # ε = 1e-7 beside a variance of 1e-4
    assert tiny().prepare(waveform) is waveform


@torch.no_grad()
def test_group_norm_models_ignore_gain_and_offset() -> None:
    torch.manual_seed(0)
    waveform = torch.randn(4000)
    expected = GROUP_MODEL([waveform]).last.values_ND
    assert relative_difference(GROUP_MODEL([waveform * 7 + 3]).last.values_ND, expected) < 1e-3


def test_faults_in_a_configuration_are_told() -> None:
    for changes, word in (
        ({"width": 17}, "num_heads"),
        ({"conv_strides": (5, 2)}, "equally many"),
        ({"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(ValueError, match=word):
            WaveConfig.model_validate(TINY | changes)


# Parameters in millions as published, minus heads where the figure has them. wav2vec 2.0 (methods, [M]): 95.04 and 317.39
# with quantizer (512·640 + 640 + 640·vq/2), project_targets (vq·q + q) and project_context (d·q + q).
# XLS-R: 317.4, 965.5, 2162.9 with heads. HuBERT: 94.37, 315.4, 962.5 without.
def heads(width: int, target: int) -> float:
    quantizer = 512 * 640 + 640 + 640 * target // 2
    return (quantizer + target * target + target + width * target + target) / 1e6


@pytest.mark.parametrize(
    ("name", "published", "head", "tolerance"),
    [
        ("wav2vec2-base", 95.04, heads(768, 256), 0.01),
        ("wav2vec2-large", 317.39, heads(1024, 768), 0.01),
        ("wav2vec2-large-lv60k", 317.4, heads(1024, 768), 0.05),
        ("xlsr-53", 317.4, heads(1024, 768), 0.05),
        ("xls-r-300m", 317.4, heads(1024, 768), 0.05),
        ("xls-r-1b", 965.5, heads(1280, 1024), 0.05),
        ("xls-r-2b", 2162.9, heads(1920, 1024), 0.05),
        ("hubert-base", 94.37, 0.0, 0.01),
        ("hubert-large", 315.4, 0.0, 0.05),
        ("hubert-xlarge", 962.5, 0.0, 0.05),
        ("modified-cpc", 1.843456, 0.0, 1e-9),
    ],
)
def test_published_sizes(name: str, published: float, head: float, tolerance: float) -> None:
    with torch.device("meta"):
        encoder = build_encoder(preset(name))
    millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    assert millions + head == pytest.approx(published, abs=tolerance)


def test_presets_can_be_named_and_a_wrong_name_is_told() -> None:
    assert {"wave-tiny", "wave-small", "cpc", "xls-r-2b"} <= set(preset_names())
    assert sum(p.numel() for p in build_encoder(preset("wave-tiny")).parameters()) < 500_000
    assert 2e6 < sum(p.numel() for p in build_encoder(preset("wave-small")).parameters()) < 5e6
    with pytest.raises(ConfigError, match="xls-r-300m"):
        preset("xlsr-300m")


@torch.no_grad()
def test_initialisation_is_the_released_one() -> None:
    torch.manual_seed(0)
    encoder = WaveEncoder(WaveConfig(num_layers=1))
    layer = encoder.layers[0]
    assert float(layer.ffn.up.weight.std()) == pytest.approx(0.02, rel=0.01)
    assert not layer.attention.qkv.bias.any()
    # Kaiming normal: √(2/(kernel·in)).
    assert float(encoder.convolutions.convs[1].weight.std()) == pytest.approx((2 / (3 * 512)) ** 0.5, rel=0.01)
    assert 0 <= float(encoder.mask_embedding_D.min()) < float(encoder.mask_embedding_D.max()) <= 1
    assert float(encoder.mask_embedding_D.mean()) == pytest.approx(0.5, abs=0.06)
    assert float(encoder.projection.weight.abs().max()) <= 512**-0.5
