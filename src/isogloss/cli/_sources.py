"""What `isogloss probe` and `isogloss abx` measure: models, folders of features, and what they are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isogloss.cli._names import short_names
from isogloss.cli._show import progress_bar

if TYPE_CHECKING:
    from isogloss.encoders.base import Encoder
    from isogloss.evaluation.features import FeatureSource

ForLanguage = Annotated[
    str | None,
    typer.Option(help="the language that a model with masks or adapters is set to; none by default"),
]

_RIVALS = ("mel", "mfcc", "untrained")


def rivals(against: str) -> list[str]:
    """Return the names in a list with commas between."""
    return [name.strip() for name in against.split(",") if name.strip()]


def check_sources(
    models: Sequence[Path],
    against: Sequence[str],
    *,
    folders: Sequence[Path] = (),
    layers: bool,
    language: str | None = None,
) -> None:
    """Refuse, before the corpus is read, sources that are not known or twice there, and options that would be left unused.

    `layers` says that `--layer` is given, `language` is that of `--for-language`. Raises `ConfigError`.
    """
    from isogloss.core.errors import ConfigError

    for name in against:
        if name not in _RIVALS:
            raise ConfigError(f"`--against` knows mel, mfcc and untrained, but not `{name}`")
    short_names(models)
    if models:
        return
    if not folders and not against:
        raise ConfigError("there is nothing to measure: give a model with `--from`, or `--against mel,mfcc`")
    if "untrained" in against:
        raise ConfigError("`--against untrained` needs a model to be like; give one with `--from`")
    if layers:
        raise ConfigError("`--layer` chooses among the layers of a model; give one with `--from`")
    if language is not None:
        raise ConfigError("`--for-language` is how a model is measured; give one with `--from`")


@dataclass(frozen=True)
class Model:
    """An encoder that is measured, its name in the results, and what they must say of it."""

    name: str
    encoder: Encoder
    note: str = ""


def open_models(paths: Sequence[Path], language: str | None) -> list[Model]:
    """Open models, those that depend on the language as they are for this one; without one they have a note that says so.

    Raises `ConfigError` where no model depends on the language, and for a language that a model was not adapted to.
    """
    from isogloss.hub.load import load_encoder

    encoders = [load_encoder(path) for path in paths]
    # Beside one that depends on the language stands a dense one; alone it is asked for something that it does not have.
    is_dense = all(encoder.edits is None for encoder in encoders)
    return [
        _as_for(name, encoder, language if encoder.edits is not None or is_dense else None)
        for name, encoder in zip(short_names(paths), encoders, strict=True)
    ]


def _as_for(name: str, encoder: Encoder, language: str | None) -> Model:
    from isogloss.encoders.language_edits import row_of

    if language is not None:
        row = row_of(encoder, language)
        assert encoder.edits is not None
        return Model(f"{name} [{encoder.edits.languages[row]}]", encoder.for_language(language))
    if encoder.edits is None:
        return Model(name, encoder)
    return Model(
        name,
        encoder,
        f"{name} was measured without its {encoder.edits.kind}, which is not how it was trained; `--for-language` measures it as for "
        f"one of {', '.join(encoder.edits.languages)}",
    )


def feature_sources(
    models: Sequence[Model],
    against: Sequence[str],
    cuts: Sequence[Any],
    *,
    folders: Sequence[Path] = (),
    layers: list[int] | None,
    seed: int,
    cache: Path | None,
) -> Iterator[FeatureSource]:
    """Yield the features of models, then of folders, then what they are compared with; "untrained" is like the first model."""
    import torch

    from isogloss.evaluation.feature_files import read_feature_files
    from isogloss.evaluation.features import extract_features
    from isogloss.evaluation.spectral import SpectralSource
    from isogloss.evaluation.untrained import untrained_like

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for model in models:
        with progress_bar(f"encoding with {model.name}") as progress:
            yield extract_features(
                model.encoder.to(device), cuts, layers=layers, cache_dir=cache, name=model.name, progress=progress
            )
    for folder in folders:
        yield read_feature_files(folder)
    for name in against:
        if name == "untrained" and models:
            other = untrained_like(models[0].encoder, seed).to(device)
            with progress_bar("encoding with the untrained encoder") as progress:
                yield extract_features(other, cuts, layers=layers, cache_dir=cache, name=name, progress=progress)
        elif name != "untrained":
            yield SpectralSource(name)  # type: ignore[arg-type]
