"""Wav2Vec2Conformer and Wav2Vec2Bert of transformers: parity in both directions on random weights, tables and statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isogloss.core.errors import CheckpointError
from isogloss.core.types import Packed
from isogloss.encoders.conformer import ConformerEncoder
from isogloss.encoders.presets import build_encoder, preset
from isogloss.encoders.wave_conformer import WaveConformerConfig
from isogloss.hub.export import export_hf
from isogloss.hub.families import wav2vec2_bert, wav2vec2_conformer
from isogloss.hub.load import load_encoder, load_model
from isogloss.nn.batch_norm import step_statistics

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_depthwise_kernel_size": 7,
}
WAVE: dict[str, Any] = SIZES | {
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "codevector_dim": 8,
    "proj_codevector_dim": 6,
    "num_codevectors_per_group": 5,
    "vocab_size": 7,
}
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "hidden_act": "swish",
    "feat_extract_norm": "layer",
    "conv_bias": True,
}
# 100 frames of a filterbank at least, so that distances beyond −64 and +8 are met.
WAVEFORM = torch.randn(40_123, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.02
EXTRACTOR = {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "num_mel_bins": 80, "stride": 2}


def make(class_name: str, **changes: Any) -> Any:
    """A model with random weights, norms, biases, tables and stored statistics."""
    torch.manual_seed(0)
    model_class = getattr(transformers, class_name)
    model: nn.Module = model_class(model_class.config_class(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.dim() <= 1 or "pos_bias" in name else 0.3 * float(parameter.std())
            parameter.add_(spread * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.5 * torch.randn_like(buffer))
            if name.endswith("running_var"):
                buffer.copy_(0.2 + torch.rand_like(buffer))
    return model.eval()


@torch.no_grad()
def states_of(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Every state of transformers' model, the last one after its final norm."""
    out = model.base_model(**inputs, output_hidden_states=True)
    return [*out.hidden_states[:-1], out.last_hidden_state]


@torch.no_grad()
def assert_same(expected: list[Tensor], encoder: Any, tolerance: float = 1e-5) -> None:
    states = [state.values_ND for state in encoder([encoder.prepare(WAVEFORM)]).states]
    assert len(states) == len(expected) == 3
    for ours, theirs in zip(states, expected, strict=True):
        theirs = theirs[0, : len(ours)]
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < tolerance


@pytest.mark.parametrize(
    "changes",
    [
        {"position_embeddings_type": "relative", "hidden_act": "swish"},
        {"position_embeddings_type": "rotary", "hidden_act": "gelu"},
        {"position_embeddings_type": None, "hidden_act": "gelu"},
        {"position_embeddings_type": "relative", "feat_extract_norm": "layer", "conv_bias": True},
    ],
)
def test_wave_conformer_equals_transformers_and_back(changes: dict[str, Any], tmp_path: Path) -> None:
    model = make("Wav2Vec2ConformerModel", **WAVE, **changes)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    assert loaded.report.fresh == []
    assert loaded.head_tensors == {}
    assert any("positional convolution" in note for note in loaded.report.notes)
    encoder = loaded.encoder
    expected = states_of(model, {"input_values": encoder.prepare(WAVEFORM)[None]})
    assert_same(expected, encoder)
    export_hf(encoder, tmp_path / "ours")
    again, report = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "ours")
    inputs = extractor(WAVEFORM.numpy(), sampling_rate=16_000, return_tensors="pt")
    assert_same(states_of(again.eval(), {"input_values": inputs["input_values"]}), encoder)
    assert_same(expected, load_encoder(tmp_path / "ours"))


def test_heads_of_the_wave_conformer_are_those_of_wav2vec2(tmp_path: Path) -> None:
    model = make("Wav2Vec2ConformerForPreTraining", **WAVE)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert_same(states_of(model, {"input_values": WAVEFORM[None]}), loaded.encoder)
    torch.testing.assert_close(loaded.head_tensors["quantizer.codebook"], model.quantizer.codevectors)
    torch.testing.assert_close(loaded.head_tensors["project_context.bias"], model.project_hid.bias)


def bert_inputs(**changes: Any) -> dict[str, Tensor]:
    extractor = transformers.SeamlessM4TFeatureExtractor(**changes)
    features = extractor(WAVEFORM.numpy(), sampling_rate=16_000, return_tensors="pt")
    return {name: torch.as_tensor(value) for name, value in features.items()}


@pytest.mark.parametrize("positions", ["relative_key", "relative", "rotary", None])
def test_w2v_bert_2_equals_transformers_from_audio_and_back(positions: str | None, tmp_path: Path) -> None:
    model = make("Wav2Vec2BertModel", **SIZES, position_embeddings_type=positions)
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(EXTRACTOR))
    encoder = load_encoder(tmp_path / "theirs")
    expected = states_of(model, bert_inputs())
    assert encoder.num_frames(len(WAVEFORM)) == 124
    assert_same(expected, encoder, 1e-5)
    export_hf(encoder, tmp_path / "ours")
    again, report = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "ours")
    features = extractor(WAVEFORM.numpy(), sampling_rate=16_000, return_tensors="pt")
    assert_same(states_of(again.eval(), dict(features)), encoder)
    assert_same(expected, load_encoder(tmp_path / "ours"))


@torch.no_grad()
def test_w2v_bert_2_equals_transformers_from_features_with_masks(tmp_path: Path) -> None:
    model = make("Wav2Vec2BertModel", **SIZES)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert isinstance(encoder, ConformerEncoder)
    generator = torch.Generator().manual_seed(1)
    features_SD = torch.randn(50, 160, generator=generator)
    # A stacked frame is two spectral ones.
    latents = encoder.embed(Packed.from_list([features_SD.view(100, 80)])).latents
    is_masked_N = torch.rand(50, generator=generator) < 0.4
    theirs = model(features_SD[None], mask_time_indices=is_masked_N[None]).last_hidden_state[0]
    torch.testing.assert_close(encoder.context(latents, is_masked_N).last.values_ND, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_samples", [40_123, 9123, 801, 16_000])
@pytest.mark.parametrize("gain", [1.0, 1e-4])
def test_filterbank_equals_that_of_transformers(num_samples: int, gain: float) -> None:
    encoder = build_encoder(preset("w2v-bert-2.0").model_copy(update={"num_layers": 1, "width": 16, "ffn_width": 16}))
    assert isinstance(encoder, ConformerEncoder)
    generator = torch.Generator().manual_seed(2)
    # A loud low tone beside little noise: what float32 spectra lose digits on.
    times_T = torch.arange(num_samples)
    loudness_T = 0.3 + torch.sin(0.0011 * times_T) ** 2
    waveform_T = gain * (loudness_T * torch.sin(0.05 * times_T) + 1e-3 * torch.randn(num_samples, generator=generator))
    theirs = transformers.SeamlessM4TFeatureExtractor()(waveform_T.numpy(), sampling_rate=16_000, return_tensors="pt")
    num_frames = int(torch.as_tensor(theirs["attention_mask"]).sum())
    ours = encoder.embed(encoder.spectrum(Packed.from_list([waveform_T]))).features.values_ND
    assert len(ours) == num_frames == encoder.num_frames(num_samples)
    torch.testing.assert_close(ours, theirs["input_features"][0, :num_frames], atol=2e-5, rtol=0)


def test_gradients_equal_transformers(tmp_path: Path) -> None:
    """Of batch norm in training, too: alone, an utterance has no padding in transformers either."""
    for positions in ("relative", "rotary"):
        model = make(
            "Wav2Vec2ConformerModel", **WAVE, position_embeddings_type=positions, mask_time_prob=0.0, layerdrop=0.0,
            **dict.fromkeys(["hidden_dropout", "attention_dropout", "activation_dropout", "conformer_conv_dropout"], 0.0),
        )  # fmt: skip
        model.save_pretrained(tmp_path)
        encoder = load_encoder(tmp_path).train()
        latents = encoder.frontend(Packed.from_list([WAVEFORM])).latents
        out = encoder.context(latents).last.values_ND
        step_statistics(encoder)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
        (out * weights).sum().backward()
        theirs = model.train()(WAVEFORM[None]).last_hidden_state[0]
        torch.testing.assert_close(out, theirs, atol=1e-4, rtol=1e-4)
        (theirs * weights).sum().backward()
        layer, other = encoder.get_submodule("layers.0"), model.encoder.layers[0]
        pairs = [
            (layer.attention.qkv.weight.grad[:32], other.self_attn.linear_q.weight.grad),
            (layer.attention.out.weight.grad, other.self_attn.linear_out.weight.grad),
            (layer.conv.depthwise.weight.grad, other.conv_module.depthwise_conv.weight.grad),
            (layer.conv.expand.weight.grad, other.conv_module.pointwise_conv1.weight.grad.squeeze(2)),
            (layer.conv.norm.weight.grad, other.conv_module.batch_norm.weight.grad),
            (layer.ffn1.up.weight.grad, other.ffn1.intermediate_dense.weight.grad),
        ]
        if positions == "relative":
            pairs += [
                (layer.attention.content_bias_Hd.grad, other.self_attn.pos_bias_u.grad),
                (layer.attention.distance_bias_Hd.grad, other.self_attn.pos_bias_v.grad),
                (layer.attention.distance.weight.grad, other.self_attn.linear_pos.weight.grad),
            ]
        for ours, expected in pairs:
            torch.testing.assert_close(ours, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)
        torch.testing.assert_close(
            layer.conv.norm.running_mean, other.conv_module.batch_norm.running_mean, atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            layer.conv.norm.running_var, other.conv_module.batch_norm.running_var, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("name", "key", "value", "word"),
    [
        ("Wav2Vec2ConformerModel", "hidden_act", "relu", "hidden_act"),
        ("Wav2Vec2ConformerModel", "position_embeddings_type", "alibi", "positions"),
        ("Wav2Vec2ConformerModel", "rotary_embedding_base", 500, "rotary_embedding_base"),
        ("Wav2Vec2ConformerModel", "layer_norm_eps", 1e-3, "layer_norm_eps"),
        ("Wav2Vec2ConformerModel", "conv_depthwise_kernel_size", 6, "kernel"),
        ("Wav2Vec2BertModel", "hidden_act", "relu", "hidden_act"),
        ("Wav2Vec2BertModel", "feature_projection_input_dim", 161, "feature_projection_input_dim"),
        ("Wav2Vec2BertModel", "num_hidden_layers", 5, "layers"),
    ],
)
def test_another_network_is_refused_by_name(name: str, key: str, value: Any, word: str, tmp_path: Path) -> None:
    make(name, **(WAVE if "Conformer" in name else SIZES)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match=word):
        load_encoder(tmp_path)


def test_what_transformers_has_no_class_for_is_not_exported(tmp_path: Path) -> None:
    for config in (preset("conformer-tiny"), preset("wave-conformer-tiny")):
        with pytest.raises(CheckpointError, match="no class"):
            export_hf(build_encoder(config), tmp_path / "out")


def test_published_sizes_count_what_transformers_counts() -> None:
    """580.5 M and 618.5 M, without what is never used where we leave it out."""
    with torch.device("meta"):
        bert = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig())
        conformer = transformers.Wav2Vec2ConformerModel(transformers.Wav2Vec2ConformerConfig(**LARGE))
        ours = {name: build_encoder(preset(name)) for name in ("w2v-bert-2.0", "wav2vec2-conformer-large")}
    counts = {name: sum(p.numel() for p in encoder.parameters()) for name, encoder in ours.items()}
    assert counts["w2v-bert-2.0"] == sum(p.numel() for p in bert.parameters())
    assert counts["w2v-bert-2.0"] == pytest.approx(580.5e6, rel=1e-4)
    total = sum(p.numel() for p in conformer.parameters())
    unused = sum(p.numel() for p in conformer.encoder.pos_conv_embed.parameters())
    assert total == pytest.approx(618.5e6, rel=2e-4)
    assert counts["wav2vec2-conformer-large"] == total - unused


def test_the_preset_is_the_released_configuration(tmp_path: Path) -> None:
    tree = transformers.Wav2Vec2BertConfig().to_dict()
    assert wav2vec2_bert.FAMILY.read_config(tree, tmp_path) == preset("w2v-bert-2.0")
    config = transformers.Wav2Vec2ConformerConfig(**LARGE, activation_dropout=0.0, layerdrop=0.0)
    assert wav2vec2_conformer.FAMILY.read_config(config.to_dict(), tmp_path) == WaveConformerConfig()
