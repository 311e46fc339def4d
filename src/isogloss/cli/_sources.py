"""What `isogloss probe` and `isogloss abx` measure: models, folders of features, and what they are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isogloss.cli._names import short_names
from isogloss.cli._show import progress_bar

if TYPE_CHECKING:
    from isogloss.evaluation.features import FeatureSource

_RIVALS = ("mel", "mfcc", "untrained")


def rivals(against: str) -> list[str]:
    """Return the names in a list with commas between."""
    return [name.strip() for name in against.split(",") if name.strip()]


def check_sources(
    models: Sequence[Path], against: Sequence[str], *, folders: Sequence[Path] = (), layers: bool
) -> None:
    """Refuse, before the corpus is read, sources that are not known or twice there, and options that would be left unused.

    `layers` says that `--layer` is given. Raises `ConfigError`.
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


def feature_sources(
    models: Sequence[Path],
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
    from isogloss.hub.load import load_encoder

    first = None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, path in zip(short_names(models), models, strict=True):
        encoder = load_encoder(path).to(device)
        first = first or encoder
        with progress_bar(f"encoding with {name}") as progress:
            yield extract_features(encoder, cuts, layers=layers, cache_dir=cache, name=name, progress=progress)
    for folder in folders:
        yield read_feature_files(folder)
    for name in against:
        if name == "untrained" and first is not None:
            other = untrained_like(first, seed).to(device)
            with progress_bar("encoding with the untrained encoder") as progress:
                yield extract_features(other, cuts, layers=layers, cache_dir=cache, name=name, progress=progress)
        elif name != "untrained":
            yield SpectralSource(name)  # type: ignore[arg-type]
