"""Make an encoder depend on the language: which edits lie where, which language is selected, what each language costs.

An edit is put into an encoder before it is trained (`install`); the encoder stays what it was, with the same names, and
without a selected language it computes what it did. Every tensor of an edit has one row per language (nn/edits.py).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from isogloss.core.config import Config
from isogloss.core.errors import ConfigError, DataError
from isogloss.core.fields import Count, Positive
from isogloss.core.languages import normalize_language
from isogloss.encoders.base import Encoder
from isogloss.nn.edits import Adapter, Gate, LanguageEdit, LanguageVector, LowRank, WeightMask
from isogloss.nn.product import Linear

MARK = ".edit."  # in the name of every tensor that belongs to an edit


class _Languages(Config):
    """The languages, in the order of the rows (those of the corpus where none are given).

    With `freeze_shared` only what belongs to single languages is trained: rows, and with masks the matrices. Training leaves
    rows and weights of `protected` languages as they are; what is shared is frozen then too.
    """

    languages: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()
    freeze_shared: bool = False

    @model_validator(mode="after")
    def _check(self) -> _Languages:
        if len(set(self.languages)) != len(self.languages):
            raise ValueError(f"`languages` must be different ones, but are {', '.join(self.languages)}")
        if unknown := sorted(set(self.protected) - set(self.languages)):
            raise ValueError(f"`protected` must be among `languages`, but {unknown[0]} is not")
        return self


class MasksConfig(_Languages):
    """A mask per language on every matrix of the blocks (S3Net, arXiv 2203.04583)."""

    kind: Literal["masks"] = "masks"


class OneHotConfig(_Languages):
    """A vector per language, added to every frame before the first block."""

    kind: Literal["one-hot"] = "one-hot"


class AdaptersConfig(_Languages):
    """A bottleneck per language after each part of each block (arXiv 1909.08478)."""

    kind: Literal["adapters"] = "adapters"
    bottleneck: Count = 256


class GatesConfig(_Languages):
    """A scale per language and channel after each part of each block."""

    kind: Literal["gates"] = "gates"


class LoraConfig(_Languages):
    """A low-rank update per language of every matrix of the blocks (arXiv 2106.09685)."""

    kind: Literal["lora"] = "lora"
    rank: Count = 8
    alpha: Positive = 16.0


EditsConfig = Annotated[
    MasksConfig | OneHotConfig | AdaptersConfig | GatesConfig | LoraConfig, Field(discriminator="kind")
]


def matrices(encoder: Encoder) -> dict[str, Linear]:
    """Return every matrix of the encoder's blocks by name: what is prunable (in wave transformers q, k, v, o and both of the FFN)."""
    inside = {id(module) for block in encoder.blocks() for module in block.modules() if isinstance(module, Linear)}
    return {
        name: module for name, module in encoder.named_modules() if isinstance(module, Linear) and id(module) in inside
    }


def install(encoder: Encoder, config: EditsConfig) -> None:
    """Put the edits of a configuration into an encoder, at their start values (random ones from torch's global generator).

    Raises `ConfigError` where the encoder has edits already, or no blocks to put them into.
    """
    if encoder.edits is not None:
        raise ConfigError(f"this encoder has {encoder.edits.kind} for its languages already; start from one without")
    found = matrices(encoder)
    if not found:
        raise ConfigError(
            f"an encoder of the kind `{encoder.config.model_dump().get('kind')}` has no blocks, so it can have no sub-networks or "
            "adapters per language; try a transformer"
        )
    num_languages = len(config.languages)
    if not num_languages:
        raise ConfigError(f"{config.kind} need the languages that they are for, but `edits.languages` is empty")
    if isinstance(config, MasksConfig):
        for matrix in found.values():
            matrix.edit = WeightMask(num_languages, _shape(matrix))
    elif isinstance(config, LoraConfig):
        for matrix in found.values():
            matrix.edit = LowRank(num_languages, _shape(matrix), config.rank, config.alpha)
    elif isinstance(config, OneHotConfig):
        first = encoder.blocks()[0]
        first.add_module("edit", LanguageVector(num_languages, encoder.width))
        first.register_forward_pre_hook(_edit_input)
    else:
        for part in _parts(encoder):
            part.add_module(
                "edit",
                Adapter(num_languages, encoder.width, config.bottleneck)
                if isinstance(config, AdaptersConfig)
                else Gate(num_languages, encoder.width),
            )
            part.register_forward_hook(_edit_output)
    for edit in edits_of(encoder).values():
        edit.to(next(iter(found.values())).weight.device)
    encoder.edits = config


def edits_of(module: nn.Module) -> dict[str, LanguageEdit]:
    """Return every edit below a module by name."""
    return {name: edit for name, edit in module.named_modules() if isinstance(edit, LanguageEdit)}


def select(module: nn.Module, language: int | None) -> None:
    """Let the edits below a module act for the language of this row, or for none."""
    for edit in edits_of(module).values():
        edit.select(language)


def row_of(encoder: Encoder, language: str | None) -> int:
    """Return the row of a language, in any spelling that corpora have (`cs`, `CS`, `ces`), or of it in all regions (`cs-CZ`).

    Raises `ConfigError` where there is none, and for an encoder that is the same for all.
    """
    if encoder.edits is None:
        raise ConfigError("this encoder is the same for all languages; adapt it first (`isogloss adapt`)")
    languages = encoder.edits.languages
    if language is None:
        raise ConfigError(
            f"utterances do not say their language, by which this encoder's {encoder.edits.kind} are chosen ({', '.join(languages)}); "
            "give `--language`, or a corpus that says it"
        )
    if language in languages:
        return languages.index(language)
    tag = normalize_language(language).tag
    # A region is a place, seldom another language: its speech is that of the language as a whole (RFC 4647, §3.4).
    for wider in dict.fromkeys((tag, re.sub(r"-([A-Z]{2}|[0-9]{3})$", "", tag))):
        for row, known in enumerate(languages):
            if normalize_language(known).tag == wider:
                return row
    raise ConfigError(f"this encoder was not adapted to the language `{language}`, but to {', '.join(languages)}")


def own_name(encoder: Encoder, language: str | None) -> str | None:
    """Return how an encoder's edits name a language (`row_of`), None where they have no row for it."""
    try:
        row = row_of(encoder, language)
    except (ConfigError, DataError):
        return None
    assert encoder.edits is not None
    return encoder.edits.languages[row]


@torch.no_grad()
def fixed_to(encoder: Encoder, language: str) -> Encoder:
    """Return the encoder as it is for one language, in eval mode; all that does not depend on the language is shared.

    Masked and low-rank weights are computed once: the result is a plain encoder, as quick as one without languages.
    """
    row = row_of(encoder, language)
    shared = [*encoder.parameters(), *encoder.buffers()]
    fixed = copy.deepcopy(encoder, {id(tensor): tensor for tensor in shared})
    select(fixed, row)
    for matrix in matrices(fixed).values():
        if matrix.edit is not None:
            matrix.weight = nn.Parameter(matrix.used_weight().detach().clone(), requires_grad=False)
            matrix.edit = None
    if not edits_of(fixed):
        fixed.edits = None
    return fixed.eval()


def split_rows(encoder: Encoder) -> dict[str, Tensor]:
    """Return what belongs to each language, `LANGUAGE/NAME` → row; an encoder without edits has nothing."""
    if encoder.edits is None:
        return {}
    rows = {}
    for name, tensor in encoder.state_dict().items():
        if MARK in name:
            for row, language in enumerate(encoder.edits.languages):
                rows[f"{language}/{name}"] = tensor[row]
    return rows


@torch.no_grad()
def write_rows(encoder: Encoder, rows: Mapping[str, Tensor]) -> None:
    """Write rows that `split_rows` returned into an encoder's edits; languages that they do not name keep theirs.

    Raises `ConfigError` for a name that the encoder does not have, and for another shape.
    """
    tensors = {name: tensor for name, tensor in encoder.state_dict().items() if MARK in name}
    languages = encoder.edits.languages if encoder.edits is not None else ()
    for key, value in rows.items():
        language, _, name = key.partition("/")
        target = tensors.get(name)
        # Rows have the very names of languages: `fr-CA` must not become `fr` here.
        if target is None or language not in languages or target[0].shape != value.shape or target.dtype != value.dtype:
            raise ConfigError(f"`{key}` does not fit the encoder's edits; usually because it belongs to another model")
        target[languages.index(language)].copy_(value)


def dense_tensors(encoder: Encoder) -> dict[str, Tensor]:
    """Return the encoder's tensors without those of edits."""
    return {name: tensor for name, tensor in encoder.state_dict().items() if MARK not in name}


@torch.no_grad()
def with_languages(encoder: Encoder, added: Sequence[str]) -> None:
    """Give an encoder's edits a new row for each added language, at its start value; the old rows stay bit-equal.

    Raises `ConfigError` for languages that the encoder has already, or that are named twice.
    """
    old, rows = encoder.edits, split_rows(encoder)
    if old is None:
        raise ConfigError("this encoder is the same for all languages; adapt it first (`isogloss adapt`)")
    if known := sorted({name for name in added if name in old.languages or list(added).count(name) > 1}):
        raise ConfigError(
            f"added languages must be new to the encoder and different, but {', '.join(known)} "
            f"{'is' if len(known) == 1 else 'are'} not; it has {', '.join(old.languages)}"
        )
    remove(encoder)
    install(encoder, old.model_copy(update={"languages": (*old.languages, *added), "protected": ()}))
    write_rows(encoder, rows)


def remove(encoder: Encoder) -> None:
    """Take the edits out of an encoder."""
    for module in encoder.modules():
        if isinstance(module, Linear):
            module.edit = None
        elif "edit" in module._modules:
            del module._modules["edit"]
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key in [key for key, hook in hooks.items() if hook in (_edit_input, _edit_output)]:
                    del hooks[key]
    encoder.edits = None


def freeze_shared(encoder: Encoder) -> list[str]:
    """Take out of training whatever no single language owns, where the edits ask for it, and return the names."""
    if encoder.edits is None or not (encoder.edits.protected or encoder.edits.freeze_shared):
        return []
    own = {id(parameter) for parameter, _ in owned(encoder)}
    names = [name for name, parameter in encoder.named_parameters() if id(parameter) not in own]
    for name in names:
        encoder.get_parameter(name).requires_grad_(False)
    return names


def owned(encoder: Encoder) -> Iterator[tuple[Tensor, LanguageEdit]]:
    """Yield the parameters of which a language uses only a part, with the edit that says which."""
    for matrix in matrices(encoder).values():
        if isinstance(matrix.edit, WeightMask):
            yield matrix.weight, matrix.edit
    for edit in edits_of(encoder).values():
        for parameter in edit.parameters():
            yield parameter, edit


def used_part(parameter: Tensor, edit: LanguageEdit, rows: Sequence[int]) -> Tensor:
    """Return which elements of a whole parameter the languages of these rows use, bool of its shape (or broadcast to it)."""
    if isinstance(edit, WeightMask):
        used = torch.zeros(edit.shape, dtype=torch.bool, device=edit.bits_LW.device)
        for row in rows:
            used |= edit.mask(row)
        return used
    used = torch.zeros(parameter.shape[0], dtype=torch.bool, device=parameter.device)
    used[list(rows)] = True
    return used.view(-1, *[1] * (parameter.dim() - 1)).expand(parameter.shape)


class LanguageCost(Config):
    """What a language costs: weights that it uses (`active`), bytes that it adds to the shared model (`stored_bytes`)."""

    active: int
    stored_bytes: int


def costs(encoder: Encoder) -> dict[str, LanguageCost]:
    """Return the cost of each language; `active` counts the encoder's weights that are not zero for it, without heads."""
    if encoder.edits is None:
        raise ConfigError("this encoder is the same for all languages: it has no cost per language")
    shared = sum(p.numel() for name, p in encoder.named_parameters() if MARK not in name)
    result = {}
    for row, language in enumerate(encoder.edits.languages):
        active, stored = shared, 0
        for edit in edits_of(encoder).values():
            if isinstance(edit, WeightMask):
                active -= int((~edit.mask(row)).sum())
                stored += edit.bits_LW[row].nbytes
            else:
                active += sum(p[row].numel() for p in edit.parameters())
                stored += sum(p[row].nbytes for p in edit.parameters())
        result[language] = LanguageCost(active=active, stored_bytes=stored)
    return result


def _parts(encoder: Encoder) -> list[nn.Module]:
    """Return the parts of the blocks that hold matrices: attention, feed-forward."""
    return [
        part
        for block in encoder.blocks()
        for part in block.children()
        if not isinstance(part, Linear) and any(isinstance(module, Linear) for module in part.modules())
    ]


def _shape(matrix: Linear) -> tuple[int, int]:
    return matrix.out_features, matrix.in_features


# Hooks know their module from the call: in a deep copy they then edit the copy.
def _edit_input(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.edit(args[0]), *args[1:])


def _edit_output(module: Any, args: tuple[Any, ...], output: Any) -> Any:
    return (module.edit(output[0]), *output[1:]) if isinstance(output, tuple) else module.edit(output)
