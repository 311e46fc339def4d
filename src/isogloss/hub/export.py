"""Write a folder that `transformers` opens with equal outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from isogloss.core.errors import CheckpointError
from isogloss.encoders.base import Encoder
from isogloss.hub.cards import model_card
from isogloss.hub.families.base import Family, family_for
from isogloss.hub.loaded import Heads
from isogloss.hub.save import commit_folder


def export_hf(
    encoder: Encoder,
    folder: Path | str,
    objective: Heads | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json, model.safetensors, preprocessor_config.json and a model card (README.md).

    `AutoModel.from_pretrained(folder)` opens it, as Wav2Vec2 where the encoder is the trunk that many classes share. Heads
    of an objective that transformers has a class for go too (wav2vec 2.0: `Wav2Vec2ForPreTraining`). `extra` (what
    `save_model` kept) is told in the card. Raises `CheckpointError` for an encoder that transformers has no class for.
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
    if encoder.edits is not None:
        kind, languages = encoder.edits.kind, ", ".join(encoder.edits.languages)
        if kind in ("masks", "lora"):
            raise CheckpointError(
                f"transformers has no class for an encoder that depends on the language; export one of {languages} with "
                "`isogloss export --for-language`, or what `encoder.for_language(…)` gives"
            )
        raise CheckpointError(
            f"transformers has no class for an encoder that has {kind} ({languages}), for one language either; only masks and lora "
            "become a plain model"
        )
    family, config = family_for(encoder, objective_tree)
    head_class = family.head_class(objective_tree)
    foreign_heads = head_class.finish(_foreign_heads(family, heads)) if head_class is not None and heads else {}
    prefix = family.prefixes[0] if foreign_heads else ""
    notes: list[str] = []
    tensors = {}
    for name, tensor in family.to_foreign(encoder.state_dict(), encoder.config, notes).items():
        foreign = family.keys.to_foreign(name)
        if foreign is None:
            raise CheckpointError(f"the tensor {name} has no name in transformers")
        tensors[prefix + foreign] = tensor
    tensors |= foreign_heads
    config["architectures"] = [family.model_class]
    if head_class is not None and foreign_heads:
        config |= {"architectures": [head_class.name]} | head_class.head_sizes(foreign_heads, objective_tree or {})
    extractor = family.extractor(encoder.config)

    def fill(temporary: Path) -> None:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary / "model.safetensors",
            metadata={"format": "pt"},
        )
        for name, content in (("config.json", config), ("preprocessor_config.json", extractor)):
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        card = model_card(encoder, family, folder.name, objective_tree, extra, notes)
        (temporary / "README.md").write_text(card, encoding="utf-8")

    commit_folder(folder, "config.json", fill)


def _foreign_heads(family: Family, heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = ((family.heads.to_foreign(name), tensor) for name, tensor in heads.items())
    return {foreign: tensor for foreign, tensor in named if foreign is not None}
