"""Hugging Face folders: parity on random weights for every class that shares the trunk, and what must be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from isogloss.core.errors import CheckpointError
from isogloss.encoders.cpc import CpcConfig, CpcEncoder
from isogloss.encoders.wave import WaveEncoder
from isogloss.hub.export import export_hf
from isogloss.hub.families._wave import wave_config
from isogloss.hub.load import load_encoder, load_model

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "conv_dim": [16] * 7,
    "codevector_dim": 8,
    "proj_codevector_dim": 6,
    "num_codevectors_per_group": 5,
    "vocab_size": 7,
}
GROUP: dict[str, Any] = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
LAYER: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WAVEFORM = torch.randn(4321, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.02


def make(class_name: str, **changes: Any) -> nn.Module:
    """A model with random weights, norms and biases too (initialised, they are 1 and 0 and would hide a mix-up)."""
    torch.manual_seed(0)
    model_class = getattr(transformers, class_name)
    model: nn.Module = model_class(model_class.config_class(**(SMALL | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() <= 1 else 0.3 * float(parameter.std())
            parameter.add_(spread * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def assert_same_states(model: Any, encoder: Any) -> None:
    theirs = model.base_model(WAVEFORM[None], output_hidden_states=True)
    states = [state.values_ND for state in encoder([WAVEFORM]).states]
    # transformers' last hidden state is after the final norm; its hidden_states[-1] of pre-LN models is before it.
    expected = [*theirs.hidden_states[:-1], theirs.last_hidden_state]
    assert len(states) == len(expected) == 3
    for ours, other in zip(states, expected, strict=True):
        assert float((ours - other[0]).abs().max() / other.abs().max()) < 1e-5


def add_weights(folder: Path, changes: dict[str, Any], remove: tuple[str, ...] = ()) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in remove:
        del tensors[name]
    save_file(tensors | changes, folder / "model.safetensors")


@pytest.mark.parametrize("norms", [GROUP, LAYER])
@pytest.mark.parametrize("name", ["Wav2Vec2Model", "HubertModel", "UniSpeechModel", "UniSpeechSatModel"])
def test_trunk_equals_transformers_and_back(name: str, norms: dict[str, Any], tmp_path: Path) -> None:
    model = make(name, **norms)
    model.save_pretrained(tmp_path / "theirs")
    encoder = load_encoder(tmp_path / "theirs")
    assert not encoder.training
    assert_same_states(model, encoder)
    export_hf(encoder, tmp_path / "ours")
    again = transformers.AutoModel.from_pretrained(tmp_path / "ours").eval()
    assert_same_states(again, encoder)
    assert_same_states(model, load_encoder(tmp_path / "ours"))
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "README.md",
    }
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "ours")
    assert extractor.do_normalize == encoder.normalizes_waveform


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_every_combination_of_norms_and_bias(norm: str, bias: bool, stable: bool, tmp_path: Path) -> None:
    model = make("Wav2Vec2Model", feat_extract_norm=norm, do_stable_layer_norm=stable, conv_bias=bias)
    model.save_pretrained(tmp_path / "theirs")
    encoder = load_encoder(tmp_path / "theirs")
    assert_same_states(model, encoder)
    export_hf(encoder, tmp_path / "ours")
    assert_same_states(transformers.AutoModel.from_pretrained(tmp_path / "ours").eval(), encoder)


@pytest.mark.parametrize(
    "name",
    [
        "Wav2Vec2ForPreTraining",
        "Wav2Vec2ForCTC",
        "HubertForCTC",
        "UniSpeechForPreTraining",
        "UniSpeechSatForPreTraining",
        "UniSpeechSatForCTC",
    ],
)
def test_models_with_heads(name: str, tmp_path: Path) -> None:
    model: Any = make(name)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert_same_states(model, loaded.encoder)
    assert loaded.report.fresh == []
    heads = {key for key in model.state_dict() if not key.startswith(f"{model.base_model_prefix}.")}
    assert len(loaded.head_tensors) == len(heads)
    if name.endswith("CTC"):
        torch.testing.assert_close(loaded.head_tensors["lm_head.weight"], model.lm_head.weight)
    else:
        torch.testing.assert_close(loaded.head_tensors["quantizer.codebook"], model.quantizer.codevectors)
        torch.testing.assert_close(loaded.head_tensors["quantizer.logits.bias"], model.quantizer.weight_proj.bias)
        torch.testing.assert_close(loaded.head_tensors["project_targets.weight"], model.project_q.weight)
        own = "lift_targets" if name == "UniSpeechForPreTraining" else "project_context"
        torch.testing.assert_close(loaded.head_tensors[f"{own}.bias"], model.project_hid.bias)


def test_old_names_of_weight_norm_and_pickled_weights(tmp_path: Path) -> None:
    model = make("Wav2Vec2Model")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    conv = "encoder.pos_conv_embed.conv"
    tensors[f"{conv}.weight_g"] = tensors.pop(f"{conv}.parametrizations.weight.original0")
    tensors[f"{conv}.weight_v"] = tensors.pop(f"{conv}.parametrizations.weight.original1")
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_states(model, load_encoder(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert_same_states(model, load_encoder(tmp_path))


def test_half_precision_is_read_as_fp32(tmp_path: Path) -> None:
    model = make("Wav2Vec2Model").half().float()
    model.half().save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert_same_states(model.float(), encoder)


def test_shards(tmp_path: Path) -> None:
    model: Any = make("Wav2Vec2Model")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_states(model, load_encoder(tmp_path))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="same folder"):
        load_encoder(tmp_path)


@torch.no_grad()
def test_a_model_without_mask_embedding_names_it_as_fresh(tmp_path: Path) -> None:
    make("Wav2Vec2Model", mask_time_prob=0.0).save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.report.fresh == ["mask_embedding_D"]
    assert 0 <= float(loaded.encoder.mask_embedding_D.min()) <= float(loaded.encoder.mask_embedding_D.max()) <= 1


def test_masked_frames_equal_transformers(tmp_path: Path) -> None:
    model: Any = make("Wav2Vec2Model", **GROUP)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    latents = encoder.frontend(_packed()).latents
    is_masked_N = torch.arange(len(latents.values_ND)) % 3 == 0
    with torch.no_grad():
        ours = encoder.context(latents, is_masked_N).last.values_ND
        theirs = model(WAVEFORM[None], mask_time_indices=is_masked_N[None]).last_hidden_state[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_gradients_equal_transformers(tmp_path: Path) -> None:
    for norms in (GROUP, LAYER):
        model: Any = make("Wav2Vec2Model", **norms)
        model.save_pretrained(tmp_path)
        encoder = load_encoder(tmp_path)
        assert isinstance(encoder, WaveEncoder)
        frontend = encoder.convolutions(_packed())
        weights = torch.randn(len(frontend.values_ND), 32)
        states = encoder.context(frontend.with_values(encoder.latent_norm(frontend.values_ND)))
        (states.last.values_ND * weights).sum().backward()
        (model(WAVEFORM[None]).last_hidden_state[0] * weights).sum().backward()
        for index, conv in enumerate(encoder.convolutions.convs):
            expected = model.feature_extractor.conv_layers[index].conv.weight.grad.permute(0, 2, 1)
            torch.testing.assert_close(conv.weight.grad, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)
        attention = model.encoder.layers[0].attention
        expected = torch.cat([getattr(attention, f"{part}_proj").weight.grad for part in "qkv"])
        got = encoder.layers[0].attention.qkv.weight.grad
        torch.testing.assert_close(got, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)
        gain = model.encoder.pos_conv_embed.conv.parametrizations.weight.original0.grad.flatten()
        torch.testing.assert_close(encoder.position.gain_K.grad, gain, atol=1e-4 * float(gain.abs().max()), rtol=1e-3)


def _packed() -> Any:
    from isogloss.core.types import Packed

    return Packed.from_list([WAVEFORM])


def test_unknown_and_missing_tensors_are_listed(tmp_path: Path) -> None:
    make("Wav2Vec2Model").save_pretrained(tmp_path)
    add_weights(tmp_path, {"encoder.layers.0.surprise": torch.zeros(2)}, remove=("feature_projection.projection.bias",))
    with pytest.raises(CheckpointError, match=r"projection\.bias is missing.*surprise is unknown"):
        load_encoder(tmp_path)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    make("Wav2Vec2Model").save_pretrained(tmp_path)
    add_weights(tmp_path, {"encoder.layer_norm.weight": torch.zeros(31)})
    with pytest.raises(CheckpointError, match=r"norm\.weight has shape \(31,\) instead of \(32,\)"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("model_type", "whisper", "model_type"),
        ("hidden_act", "relu", "hidden_act"),
        ("adapter_attn_dim", 16, "adapter_attn_dim"),
        ("conv_pos_batch_norm", True, "conv_pos_batch_norm"),
        ("feat_extract_norm", "batch", "conv_norm"),
        ("hidden_size", 33, "width"),
        ("hidden_size", 64, "instead of"),
        ("num_hidden_layers", 10**9, "layers"),
        ("num_attention_heads", "2; import os", "num_heads"),
    ],
)
def test_another_network_is_refused_by_name(key: str, value: Any, word: str, tmp_path: Path) -> None:
    make("Wav2Vec2Model").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match=word):
        load_encoder(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, '{"model_type": "wav2vec2"}'])
def test_damaged_folders(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError):
        load_encoder(tmp_path)


def test_damaged_weights(tmp_path: Path) -> None:
    make("Wav2Vec2Model").save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_encoder(tmp_path)


def test_a_bin_that_would_run_something_is_refused(tmp_path: Path) -> None:
    make("Wav2Vec2Model").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    canary = tmp_path / "canary"

    class Malicious:
        def __reduce__(self) -> Any:
            return Path.touch, (canary,)

    torch.save({"weight": Malicious()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="refused"):
        load_encoder(tmp_path)
    assert not canary.exists()


def test_published_configuration_of_xls_r(tmp_path: Path) -> None:
    config = transformers.Wav2Vec2Config(**LAYER, hidden_size=1280, num_hidden_layers=48, num_attention_heads=16)
    assert wave_config(config.to_dict() | {"intermediate_size": 5120}, tmp_path).normalize_waveform


def test_no_cpc_encoder_is_exported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no class"):
        export_hf(CpcEncoder(CpcConfig(channels=4, width=4)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
