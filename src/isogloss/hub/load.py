"""Open a pretrained model, whoever wrote it."""

from __future__ import annotations

from pathlib import Path

from isogloss.core.errors import CheckpointError
from isogloss.encoders.base import Encoder
from isogloss.hub.fairseq import read_fairseq
from isogloss.hub.huggingface import read_huggingface
from isogloss.hub.loaded import Loaded, assemble
from isogloss.hub.save import DESCRIPTION, read_isogloss


def load_encoder(path: Path | str) -> Encoder:
    """Return the encoder of an isogloss folder, a Hugging Face folder or a fairseq `.pt` file, in eval mode, float32.

    Raises `CheckpointError` where the path holds none of them, or tensors are unknown, missing or of another shape.
    """
    return load_model(path).encoder


def load_model(path: Path | str) -> Loaded:
    """Return the encoder, the tensors of its heads, the objective's configuration (isogloss folders), and a report."""
    path = Path(path)
    if path.is_file() and path.suffix in (".pt", ".pth"):
        return assemble(read_fairseq(path), path)
    if (path / DESCRIPTION).is_file():
        return assemble(read_isogloss(path), path)
    if (path / "config.json").is_file():
        return assemble(read_huggingface(path), path)
    if path.name == "model" and (path.parent / "checkpoints").is_dir() and not path.exists():
        raise CheckpointError(
            f"{path}: there is no model yet, because its run has not ended; start the run again with the same command, and it goes on"
        )
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such file or folder; isogloss downloads no models, so fetch it first (for instance with "
            "`hf download NAME --local-dir FOLDER`) and pass the folder"
        )
    inside = (
        f"; the folder of a run holds its model in `{path / 'model'}`"
        if (path / "model" / DESCRIPTION).is_file()
        else ""
    )
    raise CheckpointError(
        f"{path}: not a model: expected a folder with {DESCRIPTION} (isogloss) or config.json (Hugging Face), or a fairseq `.pt` file"
        + inside
    )
