"""WavLM, data2vec and SpeechT5's encoder against transformers and fairseq's names; heads of pretraining under ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isogloss.core.errors import CheckpointError
from isogloss.core.types import Packed
from isogloss.encoders.base import Encoder
from isogloss.encoders.wave import WaveConfig, WaveEncoder
from isogloss.hub.export import export_hf
from isogloss.hub.load import load_encoder, load_model
from isogloss.objectives.base import build_objective
from objective_cases import NUM_UNITS, WAVE, speech

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "num_conv_pos_embedding_groups": 2,
    "conv_dim": [16] * 7,
}
SPEECH_T5: dict[str, Any] = {
    "hidden_size": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "num_conv_pos_embedding_groups": 2,
    "conv_dim": [16] * 7,
    "decoder_layers": 1,
    "decoder_ffn_dim": 16,
    "decoder_attention_heads": 2,
    "vocab_size": 9,
}
LAYER: dict[str, Any] = {"feat_extract_norm": "layer", "conv_bias": True}
FEW_BUCKETS: dict[str, Any] = {"num_buckets": 16, "max_bucket_distance": 40}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "wavlm, group, post": ("WavLMModel", SMALL | {"num_conv_pos_embeddings": 16}),
    "wavlm, layer, pre": ("WavLMModel", SMALL | LAYER | FEW_BUCKETS | {"do_stable_layer_norm": True}),
    "data2vec": ("Data2VecAudioModel", SMALL),
    "data2vec, conv bias": ("Data2VecAudioModel", SMALL | {"conv_bias": True, "num_conv_pos_embeddings": 2}),
    "speecht5": ("SpeechT5EncoderWithSpeechPrenet", SPEECH_T5),
    "speecht5, clipped early": (
        "SpeechT5EncoderWithSpeechPrenet",
        SPEECH_T5 | LAYER | {"encoder_max_relative_position": 7},
    ),
}
# Longer than 300 frames, from which attention is taken in blocks.
WAVEFORM = torch.randn(100_123, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.02


def find_class(name: str) -> Any:
    module = transformers
    if name == "SpeechT5EncoderWithSpeechPrenet":
        module = transformers.models.speecht5.modeling_speecht5
    return getattr(module, name)


def make(name: str, sizes: dict[str, Any]) -> Any:
    """A model with random weights; tables and gates of relative positions too, whose defaults would hide a mix-up."""
    torch.manual_seed(0)
    model: nn.Module = find_class(name)(find_class(name).config_class(**sizes))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            spread = 0.3 if parameter.dim() <= 1 else 0.3 * float(parameter.std())
            if re.search("rel_pos|rel_attn|pe_k", parameter_name):
                parameter.zero_()
                spread = 1.0
            parameter.add_(spread * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def worst(encoder: Encoder, expected: list[Tensor]) -> float:
    states = encoder([WAVEFORM]).states
    return max(
        float((own.values_ND - other[0]).norm() / other[0].norm()) for own, other in zip(states, expected, strict=True)
    )


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_states_equal_transformers_and_back(kind: str, tmp_path: Path) -> None:
    name, sizes = MODELS[kind]
    model = make(name, sizes)
    model.save_pretrained(tmp_path / "theirs")
    out = model(WAVEFORM[None], output_hidden_states=True)
    expected = [*out.hidden_states[:-1], out.last_hidden_state]
    loaded = load_model(tmp_path / "theirs")
    assert loaded.report.fresh == []
    assert loaded.head_tensors == {}
    assert worst(loaded.encoder, expected) < 1e-5

    export_hf(loaded.encoder, tmp_path / "ours")
    assert worst(load_encoder(tmp_path / "ours"), expected) < 1e-5
    opener = find_class(name) if "SpeechT5" in name else transformers.AutoModel
    again = opener.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(model)
    assert float((again(WAVEFORM[None]).last_hidden_state - expected[-1]).norm() / expected[-1].norm()) < 1e-5


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_masked_frames_equal_transformers(kind: str, tmp_path: Path) -> None:
    name, sizes = MODELS[kind]
    model = make(name, sizes)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    latents = encoder.frontend(Packed.from_list([WAVEFORM])).latents
    is_masked_N = torch.arange(len(latents.values_ND)) % 5 < 2
    ours = encoder.context(latents, is_masked_N).last.values_ND
    if "SpeechT5" in name:
        inputs, _ = model.prenet(WAVEFORM[None], mask_time_indices=is_masked_N[None])
        theirs = model.wrapped_encoder(inputs).last_hidden_state[0]
    else:
        theirs = model(WAVEFORM[None], mask_time_indices=is_masked_N[None]).last_hidden_state[0]
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("kind", ["wavlm, layer, pre", "data2vec", "speecht5"])
def test_gradients_equal_transformers(kind: str, tmp_path: Path) -> None:
    name, sizes = MODELS[kind]
    model = make(name, sizes)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    waveform = WAVEFORM[:9000]
    states = encoder([waveform]).last.values_ND
    weights = torch.randn_like(states)
    (states * weights).sum().backward()  # type: ignore[no-untyped-call]
    (model(waveform[None]).last_hidden_state[0] * weights).sum().backward()
    pairs = {
        "wavlm, layer, pre": [
            ("relative.weight", "encoder.layers.0.attention.rel_attn_embed.weight"),
            ("layers.2.attention.relative.gate.weight", "encoder.layers.2.attention.gru_rel_pos_linear.weight"),
            ("layers.1.attention.relative.scale_H", "encoder.layers.1.attention.gru_rel_pos_const"),
        ],
        "data2vec": [("position.weights.3", "encoder.pos_conv_embed.layers.3.conv.weight")],
        "speecht5": [("relative.weight", "wrapped_encoder.embed_positions.pe_k.weight")],
    }[kind]
    for own, other in pairs:
        expected = model.get_parameter(other).grad.flatten()
        got = encoder.get_parameter(own).grad
        assert got is not None
        torch.testing.assert_close(got.flatten(), expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


@torch.no_grad()
def test_the_encoder_inside_speecht5_for_recognition(tmp_path: Path) -> None:
    model = make("SpeechT5ForSpeechToText", SPEECH_T5)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    out = model.speecht5.encoder(WAVEFORM[None], output_hidden_states=True)
    assert worst(loaded.encoder, [*out.hidden_states[:-1], out.last_hidden_state]) < 1e-5
    assert any(name.startswith("speecht5.decoder.") for name in loaded.head_tensors)


@pytest.mark.parametrize("changes", [{"position": "conv_stack", "position_layers": 2, "norm_first": True}])
def test_what_no_class_computes_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no class"):
        export_hf(WaveEncoder(WAVE.model_validate(WAVE.model_dump() | changes)), tmp_path / "out")


@torch.no_grad()
def test_queries_without_bias_are_written_with_a_zero_bias(tmp_path: Path) -> None:
    encoder = WaveEncoder(WAVE.model_copy(update={"qkv_bias": False})).eval()
    export_hf(encoder, tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    theirs = model(WAVEFORM[None]).last_hidden_state[0]
    torch.testing.assert_close(encoder([WAVEFORM]).last.values_ND, theirs, atol=1e-4, rtol=1e-4)


def fairseq_names(encoder: WaveEncoder) -> dict[str, Tensor]:
    """What Microsoft's WavLM and fairseq's data2vec call the tensors, written out by hand."""
    norm = "2" if encoder.config.conv_norm == "group" else "2.1"
    replacements = [
        (r"^mask_embedding_D$", "mask_emb"),
        (r"^convolutions\.convs\.(\d)\.", r"feature_extractor.conv_layers.\1.0."),
        (r"^convolutions\.norms\.(\d)\.", rf"feature_extractor.conv_layers.\1.{norm}."),
        (r"^latent_norm\.", "layer_norm."),
        (r"^projection\.", "post_extract_proj."),
        (r"^position\.bias$", "encoder.pos_conv.0.bias"),
        (r"^position\.gain_K", "encoder.pos_conv.0.weight_g"),
        (r"^position\.direction", "encoder.pos_conv.0.weight_v"),
        (r"^position\.weights\.(\d)", r"encoder.pos_conv.\1.0.weight"),
        (r"^position\.biases\.(\d)", r"encoder.pos_conv.\1.0.bias"),
        (r"^relative\.weight", "encoder.layers.0.self_attn.relative_attention_bias.weight"),
        (r"^norm\.", "encoder.layer_norm."),
        (r"^layers\.", "encoder.layers."),
        (r"attention\.relative\.gate", "self_attn.grep_linear"),
        (r"attention\.relative\.scale_H", "self_attn.grep_a"),
        (r"attention\.out\.", "self_attn.out_proj."),
        (r"attention_norm", "self_attn_layer_norm"),
        (r"ffn\.up", "fc1"),
        (r"ffn\.down", "fc2"),
        (r"ffn_norm", "final_layer_norm"),
    ]
    result: dict[str, Tensor] = {}
    for own, tensor in encoder.state_dict().items():
        name = own
        for pattern, replacement in replacements:
            name = re.sub(pattern, replacement, name)
        if own.startswith("convolutions.convs.") and own.endswith("weight"):
            tensor = tensor.permute(0, 2, 1).contiguous()
        if own == "position.gain_K":
            tensor = tensor.view(1, 1, -1)
        if own.endswith("scale_H"):
            tensor = tensor.view(1, -1, 1, 1)
        if "attention.qkv" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                result[name.replace("attention.qkv", f"self_attn.{part}_proj")] = piece.clone()
        else:
            result[name] = tensor
    return result


def own_encoder(**changes: Any) -> WaveEncoder:
    torch.manual_seed(0)
    encoder = WaveEncoder(WaveConfig.model_validate(WAVE.model_dump() | changes)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder


@torch.no_grad()
def test_a_wavlm_file_of_its_authors(tmp_path: Path) -> None:
    encoder = own_encoder(num_layers=3, relative={"kind": "gated", "num_buckets": 32, "max_distance": 50})
    cfg = {"encoder_attention_heads": 2, "max_distance": 50, "num_buckets": 32, "layer_norm_first": False}
    cfg["conv_feature_layers"] = "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2"  # type: ignore[assignment]
    heads = {"label_embs_concat": torch.randn(9, 6), "final_proj.weight": torch.randn(6, 32)}
    torch.save({"cfg": cfg, "model": fairseq_names(encoder) | heads}, tmp_path / "wavlm.pt")
    loaded = load_model(tmp_path / "wavlm.pt")
    assert loaded.report.fresh == []
    assert loaded.head_tensors.keys() == {"label_embeddings", "project_context.weight"}
    torch.testing.assert_close(
        loaded.encoder([WAVEFORM]).last.values_ND, encoder([WAVEFORM]).last.values_ND, atol=1e-6, rtol=1e-6
    )


@torch.no_grad()
def test_a_data2vec_file_with_its_teacher(tmp_path: Path) -> None:
    changes = {"conv_norm": "layer", "position": "conv_stack", "position_layers": 3, "position_kernel": 5}
    encoder, averaged = own_encoder(**changes), own_encoder(**changes)
    averaged.norm.weight.mul_(2.0)
    averaged.layers[1].get_parameter("ffn.down.weight").mul_(3.0)
    cfg = {"model": {"encoder_attention_heads": 2, "encoder_layerdrop": 0.05}, "task": {"normalize": True}}
    teacher = {n.removeprefix("encoder."): t for n, t in fairseq_names(averaged).items() if n.startswith("encoder.")}
    content = fairseq_names(encoder) | {"final_proj.weight": torch.randn(32, 32), "final_proj.bias": torch.randn(32)}
    torch.save({"cfg": cfg, "model": content | {"_ema": teacher}}, tmp_path / "data2vec.pt")
    loaded = load_model(tmp_path / "data2vec.pt")
    assert loaded.encoder.normalizes_waveform
    torch.testing.assert_close(
        loaded.encoder([WAVEFORM]).last.values_ND, encoder([WAVEFORM]).last.values_ND, atol=1e-6, rtol=1e-6
    )
    objective = build_objective({"name": "data2vec", "top_layers": 1}, loaded.encoder)
    report = objective.take_heads(loaded.head_tensors)
    assert {"project.weight", "project.bias"} <= set(report.taken)
    taken = objective.state_dict()
    torch.testing.assert_close(
        taken["teacher.model.layers.1.ffn.down.weight"], averaged.state_dict()["layers.1.ffn.down.weight"]
    )


UNISPEECH: dict[str, Any] = {
    "num_codevectors_per_group": 20,
    "codevector_dim": 24,
    "proj_codevector_dim": 16,
    "do_stable_layer_norm": True,
}


@torch.no_grad()
def test_unispeech_lifts_the_codes_that_transformers_lifts(tmp_path: Path) -> None:
    model = make("UniSpeechForPreTraining", SMALL | LAYER | UNISPEECH)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    tree = {"name": "unispeech", "ctc_weight": 0.0, "num_codes": 20, "target_width": 24, "final_width": 16}
    objective: Any = build_objective(tree, loaded.encoder).eval()
    assert objective.take_heads(loaded.head_tensors).fresh == ["gumbel_temperature"]
    found = objective.config.of_heads(loaded.head_tensors)
    assert {key: found[key] for key in ("num_codes", "target_width", "final_width")} == {
        key: tree[key] for key in ("num_codes", "target_width", "final_width")
    }
    out = model(WAVEFORM[None])
    frontend = loaded.encoder.frontend(Packed.from_list([WAVEFORM]))
    _, lifted = objective.lifted_codes(frontend.latents, torch.tensor([1]))
    torch.testing.assert_close(lifted, out.projected_quantized_states[0], atol=1e-5, rtol=1e-4)
    states = loaded.encoder.context(frontend.latents).last.values_ND
    torch.testing.assert_close(states, out.projected_states[0], atol=1e-5, rtol=1e-4)
    # ctc_proj writes symbols that nobody names: it stays what it was called.
    assert {"ctc_proj.weight", "ctc_proj.bias"} <= loaded.head_tensors.keys()

    export_hf(loaded.encoder, tmp_path / "ours", objective)
    again = transformers.UniSpeechForPreTraining.from_pretrained(tmp_path / "ours").eval()
    back = again(WAVEFORM[None]).projected_quantized_states
    torch.testing.assert_close(back, out.projected_quantized_states, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_heads_of_unispeech_sat_go_round(tmp_path: Path) -> None:
    sizes = SMALL | LAYER | UNISPEECH | {"codevector_dim": 16, "num_clusters": NUM_UNITS + 4}
    model = make("UniSpeechSatForPreTraining", sizes)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    tree = {"name": "unispeech_sat", "num_units": NUM_UNITS, "num_codes": 20, "target_width": 16, "final_width": 16}
    objective = build_objective(tree | {"speaker_layer": 1}, loaded.encoder).eval()
    assert objective.take_heads(loaded.head_tensors).fresh == ["gumbel_temperature"]
    assert torch.isfinite(objective(loaded.encoder, speech([16000], encoder=loaded.encoder)).total)
    export_hf(loaded.encoder, tmp_path / "ours", objective)
    again = transformers.UniSpeechSatForPreTraining.from_pretrained(tmp_path / "ours").state_dict()
    for name, tensor in model.state_dict().items():
        # Four rows stand for the specials of a dictionary, and are no units.
        first = 4 if name == "label_embeddings_concat" else 0
        torch.testing.assert_close(again[name][first:], tensor[first:])
    found = objective.config.of_heads(load_model(tmp_path / "ours").head_tensors)
    assert found == {key: tree[key] for key in ("num_units", "num_codes", "target_width", "final_width")} | {
        "num_codebooks": 2
    }


def test_a_hubert_run_is_written_as_hubert(tmp_path: Path) -> None:
    encoder = own_encoder()
    objective = build_objective({"name": "hubert", "num_units": NUM_UNITS, "final_width": 8}, encoder)
    export_hf(encoder, tmp_path, objective)
    assert isinstance(transformers.AutoModel.from_pretrained(tmp_path), transformers.HubertModel)
