"""Mel transformer and APC encoder: parity with BERT's and torch's layers, published sizes, and utterances that stay apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from isogloss.core.errors import ConfigError
from isogloss.core.types import Packed
from isogloss.encoders.apc import ApcConfig, ApcEncoder
from isogloss.encoders.mel import MelConfig, MelEncoder, stack_frames
from isogloss.encoders.presets import build_encoder, preset
from isogloss.nn.filterbank import deltas, log_mel, normalize
from isogloss.nn.sinusoid import sinusoidal_positions

SMALL = {"num_bins": 10, "width": 16, "num_layers": 2, "num_heads": 2, "ffn_width": 24}


def tiny(**changes: object) -> MelEncoder:
    torch.manual_seed(0)
    encoder = MelEncoder(MelConfig.model_validate(SMALL | changes))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder.eval()


def bert_like(encoder: MelEncoder) -> BertEncoder:
    config = encoder.config
    bert = BertEncoder(
        BertConfig(
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.ffn_width,
            layer_norm_eps=config.layer_norm_eps,
            attn_implementation="eager",
        )
    )
    pairs = [("attention.output.dense", "attention.out"), ("attention.output.LayerNorm", "attention_norm")]
    pairs += [("intermediate.dense", "ffn.up"), ("output.dense", "ffn.down"), ("output.LayerNorm", "ffn_norm")]
    tensors = {}
    for index, layer in enumerate(encoder.layers):
        own = layer.state_dict()
        for part in ("weight", "bias"):
            for name, chunk in zip(("query", "key", "value"), own[f"attention.qkv.{part}"].chunk(3), strict=True):
                tensors[f"layer.{index}.attention.self.{name}.{part}"] = chunk
            tensors |= {f"layer.{index}.{foreign}.{part}": own[f"{ours}.{part}"] for foreign, ours in pairs}
    bert.load_state_dict(tensors)
    return bert.eval()


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"stack": 3, "num_deltas": 1}, {"normalization": "none", "num_deltas": 2}])
def test_each_utterance_equals_bert_on_its_own_spectrum(changes: dict[str, object]) -> None:
    encoder = tiny(**changes)
    waveforms = [torch.randn(n) for n in (5000, 2345, 100, 9000)]
    states = encoder(waveforms).states
    assert len(states) == 3
    for index, waveform in enumerate(waveforms):
        spectrum = log_mel(waveform, 10)
        orders = [spectrum]
        for _ in range(encoder.config.num_deltas):
            orders.append(deltas(orders[-1]))
        spectrum = torch.cat(orders, dim=1)
        if encoder.config.normalization == "utterance":
            spectrum = normalize(spectrum)
        num_frames = len(spectrum) // encoder.config.stack
        assert states[0].sizes[index] == num_frames == encoder.num_frames(len(waveform))
        if not num_frames:
            continue
        stacked = torch.stack(
            [spectrum[i * encoder.config.stack : (i + 1) * encoder.config.stack].flatten() for i in range(num_frames)]
        )
        position = torch.tensor(
            [
                [
                    math.sin(t / 10000 ** (2 * (i // 2) / 16))
                    if i % 2 == 0
                    else math.cos(t / 10000 ** (2 * (i // 2) / 16))
                    for i in range(16)
                ]
                for t in range(num_frames)
            ]
        )
        first = nn.functional.layer_norm(
            encoder.projection(stacked) + position, (16,), encoder.norm.weight, encoder.norm.bias, 1e-12
        )
        torch.testing.assert_close(states[0].split()[index], first, atol=2e-5, rtol=1e-4)
        last = bert_like(encoder)(first[None]).last_hidden_state[0]
        torch.testing.assert_close(states[2].split()[index], last, atol=5e-5, rtol=1e-4)


def test_spectrum_has_no_gradient_and_frontend_embeds_it() -> None:
    encoder = tiny(stack=2)
    audio = Packed.from_list([torch.randn(3000, requires_grad=True)])
    spectrum = encoder.spectrum(audio)
    assert not spectrum.values_ND.requires_grad
    assert torch.equal(encoder.frontend(audio).latents.values_ND, encoder.embed(spectrum).latents.values_ND)


def test_global_normalisation_keeps_what_differs_between_utterances() -> None:
    loud = torch.randn(4000)
    audio = Packed.from_list([loud, 0.01 * loud])
    kept = tiny(normalization="global").spectrum(audio).split()
    assert float((kept[0] - kept[1]).mean()) == pytest.approx(2 * math.log(100) / 4.0, rel=1e-3)
    gone = tiny().spectrum(audio).split()
    torch.testing.assert_close(gone[0], gone[1], atol=1e-3, rtol=0)


def test_stacking() -> None:
    packed = Packed(torch.arange(14.0).view(7, 2), torch.tensor([5, 2]))
    stacked = stack_frames(packed, 2)
    assert stacked.sizes == [2, 1]
    assert stacked.values_ND.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [10, 11, 12, 13]]


def test_positions_begin_anew_in_every_utterance() -> None:
    table = sinusoidal_positions([3, 0, 2], 6, torch.device("cpu"))
    assert torch.equal(table[:2], table[3:])
    assert torch.equal(table[0], torch.tensor([0.0, 1, 0, 1, 0, 1]))


def slow_apc(encoder: ApcEncoder, spectrum: Tensor) -> list[Tensor]:
    states = [spectrum]
    for layer in encoder.layers:
        out = layer.network(states[-1][None])[0][0]
        states.append(out + states[-1] if out.shape == states[-1].shape else out)
    return states


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_apc_equals_the_definition_for_each_utterance(kind: str) -> None:
    torch.manual_seed(0)
    encoder = ApcEncoder(ApcConfig(num_bins=10, width=6, recurrent=kind)).eval()
    waveforms = [torch.randn(n) for n in (5000, 2345, 100)]
    states = encoder(waveforms).states
    assert len(states) == encoder.num_layers + 1
    for index, waveform in enumerate(waveforms[:2]):
        for state, expected in zip(states, slow_apc(encoder, normalize(log_mel(waveform, 10))), strict=True):
            torch.testing.assert_close(state.split()[index], expected, atol=1e-5, rtol=1e-4)
    assert states[-1].sizes[2] == 0


def test_apc_is_causal() -> None:
    encoder = ApcEncoder(ApcConfig(num_bins=10, width=6)).eval()
    spectrum = torch.randn(20, 10, requires_grad=True)
    encoder.context(Packed(spectrum, torch.tensor([12, 8]))).last.values_ND[5].sum().backward()
    assert spectrum.grad[:6].any(dim=1).all()
    assert not spectrum.grad[6:].any()


# Counted by hand from the layers' shapes; SUPERB prints 85.12 M, 21.33 M, and 4.11 M with APC's head of 512·80 + 80.
PUBLISHED = {
    "mockingjay-base": 21_327_360,
    "mockingjay-large": 85_118_208,
    "tera-base": 21_327_360,
    "apc": 4_105_296 - 41_040,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        encoder = build_encoder(preset(name))
    assert sum(p.numel() for p in encoder.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize(
    "encoder", [tiny(), tiny(mask_embedding=True), ApcEncoder(ApcConfig(num_bins=10, width=6, mask_embedding=True))]
)
def test_every_parameter_has_a_gradient(encoder: MelEncoder | ApcEncoder) -> None:
    encoder.train()
    encoder([torch.randn(3000), torch.randn(1000)]).last.values_ND.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    encoder.zero_grad()
    encoder.eval()


def test_masks_need_an_embedding() -> None:
    latents = Packed(torch.randn(4, 10), torch.tensor([4]))
    is_masked_N = torch.tensor([True, False, False, True])
    for plain in (tiny(), ApcEncoder(ApcConfig(num_bins=10, width=6))):
        with pytest.raises(ConfigError, match="mask_embedding"):
            plain.context(latents, is_masked_N)
    encoder = ApcEncoder(ApcConfig(num_bins=10, width=6, mask_embedding=True))
    torch.testing.assert_close(encoder.context(latents, is_masked_N).states[0].values_ND[0], encoder.mask_embedding_D)
    masked = tiny(mask_embedding=True)
    changed = latents.with_values(latents.values_ND + is_masked_N[:, None])
    torch.testing.assert_close(
        masked.context(latents, is_masked_N).last.values_ND, masked.context(changed, is_masked_N).last.values_ND
    )


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for is_recomputed in (False, True):
        encoder = tiny(checkpoint_activations=is_recomputed, dropout=0.0, attention_dropout=0.0).train()
        torch.manual_seed(1)
        encoder([torch.randn(3000)]).last.values_ND.square().sum().backward()
        gradients.append(encoder.layers[0].ffn.up.weight.grad)
    torch.testing.assert_close(*gradients)
