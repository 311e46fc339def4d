"""Write a folder that `transformers` opens with equal outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from isogloss.core.errors import CheckpointError
from isogloss.encoders.base import Encoder
from isogloss.encoders.wave import WaveConfig, WaveEncoder
from isogloss.hub.cards import model_card
from isogloss.hub.loaded import Heads
from isogloss.hub.names import HUGGING_FACE, HUGGING_FACE_HEADS, own_to_plain
from isogloss.hub.save import commit_folder


def export_hf(
    encoder: Encoder,
    folder: Path | str,
    objective: Heads | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json, model.safetensors, preprocessor_config.json and a model card (README.md).

    `AutoModel.from_pretrained(folder)` opens it as Wav2Vec2. With a wav2vec 2.0 objective the heads go too, and
    `Wav2Vec2ForPreTraining` opens all of it. `extra` (what `save_model` kept) is told in the card. Raises `CheckpointError`
    for an encoder that transformers has no class for.
    """
    heads = {} if objective is None else objective.state_dict()
    tree = None if objective is None else objective.config.model_dump(mode="json")
    export_tensors(encoder, Path(folder), heads, tree, extra or {})


def export_tensors(
    encoder: Encoder,
    folder: Path,
    heads: Mapping[str, Tensor],
    objective_tree: Mapping[str, Any] | None,
    extra: Mapping[str, Any],
) -> None:
    """Write the same from an encoder and the tensors of its heads (as `load_model` gives them)."""
    if not isinstance(encoder, WaveEncoder):
        raise CheckpointError(
            f"only wave transformers can be exported, but this encoder is `{encoder.config.model_dump()['kind']}`, for which transformers "
            "has no class; keep its isogloss folder, which `isogloss.load_encoder` opens"
        )
    foreign_heads = _foreign_heads(heads) if (objective_tree or {}).get("name") == "wav2vec2" else {}
    prefix = "wav2vec2." if foreign_heads else ""
    tensors = {}
    for name, tensor in own_to_plain(encoder.state_dict()).items():
        foreign = HUGGING_FACE.to_foreign(name)
        if foreign is None:
            raise CheckpointError(f"the tensor {name} has no name in transformers")
        tensors[prefix + foreign] = tensor
    if encoder.config.conv_norm == "group" and encoder.config.conv_bias:
        # transformers has a bias there, which its group norm removes.
        tensors[f"{prefix}feature_extractor.conv_layers.0.conv.bias"] = torch.zeros(encoder.config.conv_channels[0])
    tensors |= foreign_heads
    config = _config(encoder.config, "Wav2Vec2ForPreTraining" if foreign_heads else "Wav2Vec2Model")
    if foreign_heads:
        config |= _head_sizes(foreign_heads, objective_tree or {})
    extractor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": encoder.sample_rate,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": encoder.config.normalize_waveform,
        "return_attention_mask": encoder.config.conv_norm == "layer",
    }

    def fill(temporary: Path) -> None:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary / "model.safetensors",
            metadata={"format": "pt"},
        )
        for name, content in (("config.json", config), ("preprocessor_config.json", extractor)):
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        card = model_card(encoder, folder.name, objective_tree, extra)
        (temporary / "README.md").write_text(card, encoding="utf-8")

    commit_folder(folder, "config.json", fill)


def _foreign_heads(heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    foreign = {}
    for name, tensor in heads.items():
        translated = HUGGING_FACE_HEADS.to_foreign(name)
        if translated is not None:
            foreign[translated] = tensor
    return foreign


def _head_sizes(heads: Mapping[str, Tensor], objective_tree: Mapping[str, Any]) -> dict[str, Any]:
    codebook = heads["quantizer.codevectors"]
    groups = heads["project_q.weight"].shape[1] // codebook.shape[-1]
    return {
        "num_codevector_groups": groups,
        "num_codevectors_per_group": codebook.shape[1] // groups,
        "codevector_dim": heads["project_q.weight"].shape[1],
        "proj_codevector_dim": heads["project_q.weight"].shape[0],
    }


def _config(config: WaveConfig, architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": "wav2vec2",
        "dtype": "float32",
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_width,
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "feat_extract_norm": config.conv_norm,
        "conv_dim": list(config.conv_channels),
        "conv_kernel": list(config.conv_kernels),
        "conv_stride": list(config.conv_strides),
        "conv_bias": config.conv_bias,
        "num_feat_extract_layers": len(config.conv_channels),
        "num_conv_pos_embeddings": config.position_kernel,
        "num_conv_pos_embedding_groups": config.position_groups,
        "do_stable_layer_norm": config.norm_first,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "feat_proj_dropout": config.input_dropout,
        "layerdrop": config.layerdrop,
        "mask_time_prob": 0.05,  # above 0, so that transformers has a place for the mask embedding
    }
