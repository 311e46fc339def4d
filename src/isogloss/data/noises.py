"""A folder of noises to mix into speech: a random window of a random file, decoded when it is drawn."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from isogloss.core.errors import DataError
from isogloss.data.audio import SUFFIXES, inspect_audio, read_audio


class NoiseFolder:
    """Noises by file name, in any format that `data.audio` reads; `draw` is what `corruption.mixing` asks for a noise."""

    def __init__(self, folder: Path | str, sample_rate: int = 16_000) -> None:
        self.folder, self.sample_rate = Path(folder), sample_rate
        found = self.folder.rglob("*") if self.folder.is_dir() else ()
        self.files = sorted(path for path in found if path.suffix.lower() in SUFFIXES)
        if not self.files:
            raise DataError(f"{self.folder}: must be a folder of noises, but there is no audio file in it")

    def draw(self, draws: torch.Generator, num_samples: int) -> Tensor:
        """Return a window of at most `num_samples` samples of one of the noises (float32, mono)."""
        path = self.files[int(torch.randint(len(self.files), (1,), generator=draws))]
        wanted = num_samples / self.sample_rate
        length = inspect_audio(path).duration
        start = float(torch.rand((), generator=draws)) * max(length - wanted, 0.0)
        duration = min(wanted, length) if length else None
        samples = read_audio(path, sample_rate=self.sample_rate, start=start, duration=duration)
        return torch.from_numpy(samples)[:num_samples]
