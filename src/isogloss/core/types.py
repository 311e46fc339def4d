"""The few types that travel through isogloss.

Shape suffixes used everywhere:

    B utterances          T samples            S frames of one (padded) utterance
    N frames (or samples) of the whole packed batch, utterances end to end
    F mel bins            D width              L layers           H heads
    M masked frames       K negatives or steps G codebooks        C codes per codebook
    U tokens
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor


@dataclass
class Packed:
    """Utterances end to end, without padding.

    `values_ND` holds all rows of the batch: N×D for frames, N for waveforms or labels. `lengths_B` says how many rows
    belong to each utterance; it stays on the CPU (int64), so that splitting a batch never waits for a device.
    """

    values_ND: Tensor
    lengths_B: Tensor

    def __post_init__(self) -> None:
        if self.lengths_B.device.type != "cpu":
            self.lengths_B = self.lengths_B.cpu()
        total = int(self.lengths_B.sum())
        if total != self.values_ND.shape[0]:
            raise ValueError(
                f"`lengths_B` must add up to the {self.values_ND.shape[0]} rows of `values_ND`, but adds up to {total}"
            )

    @classmethod
    def from_list(cls, items: Sequence[Tensor]) -> Self:
        """Pack tensors of shape (rows, …) that agree in all but the first dimension."""
        lengths_B = torch.tensor([len(item) for item in items], dtype=torch.int64)
        return cls(torch.cat(list(items)), lengths_B)

    @classmethod
    def from_padded(cls, values_BSD: Tensor, lengths_B: Tensor) -> Self:
        """Pack a padded batch (B×S×… with the padding at the end of each row); `lengths_B` counts the real rows."""
        lengths_B = lengths_B.cpu().to(torch.int64)
        if len(lengths_B) != values_BSD.shape[0] or int(lengths_B.max()) > values_BSD.shape[1]:
            raise ValueError(
                f"`lengths_B` must hold {values_BSD.shape[0]} lengths of at most {values_BSD.shape[1]}, but is {lengths_B.tolist()}"
            )
        return cls(torch.cat([row[:n] for row, n in zip(values_BSD, lengths_B.tolist(), strict=True)]), lengths_B)

    def __len__(self) -> int:
        """Return B, the number of utterances."""
        return len(self.lengths_B)

    @cached_property
    def sizes(self) -> list[int]:
        """The lengths as Python integers."""
        return [int(n) for n in self.lengths_B]

    @cached_property
    def offsets(self) -> list[int]:
        """The first row of each utterance, and N at the end (B+1 integers)."""
        offsets = [0]
        for n in self.sizes:
            offsets.append(offsets[-1] + n)
        return offsets

    @cached_property
    def utterance_N(self) -> Tensor:
        """The utterance that each row belongs to (int64, on the device of the values)."""
        index_B = torch.arange(len(self.lengths_B))
        return torch.repeat_interleave(index_B, self.lengths_B).to(self.values_ND.device)

    def split(self) -> list[Tensor]:
        """Return one view per utterance."""
        return list(self.values_ND.split(self.sizes))

    def padded(self, value: float = 0.0) -> Tensor:
        """Return B×S×… with S the longest utterance and `value` behind the shorter ones."""
        return torch.nn.utils.rnn.pad_sequence(self.split(), batch_first=True, padding_value=value)

    def mean(self) -> Tensor:
        """Return the mean over the rows of each utterance, B×D; zero for an utterance without rows."""
        sums_BD = self.values_ND.new_zeros(len(self), *self.values_ND.shape[1:]).index_add(
            0, self.utterance_N, self.values_ND
        )
        counts_B = self.lengths_B.clamp(min=1).to(sums_BD)
        return sums_BD / counts_B.view(-1, *[1] * (sums_BD.dim() - 1))

    def with_values(self, values_ND: Tensor) -> Packed:
        """Return other values on the same rows."""
        return Packed(values_ND, self.lengths_B)

    def rows(self, keep_N: Tensor) -> Packed:
        """Keep the rows where the boolean `keep_N` is True."""
        kept_N = keep_N.cpu()
        lengths_B = torch.stack([part.sum() for part in kept_N.split(self.sizes)]).to(torch.int64)
        return Packed(self.values_ND[keep_N], lengths_B)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Packed:
        """Move the values; the lengths stay on the CPU."""
        return Packed(self.values_ND.to(device, non_blocking=non_blocking), self.lengths_B)

    def pin_memory(self) -> Packed:
        """Copy the values to page-locked memory, for a transfer that does not block."""
        return Packed(self.values_ND.pin_memory(), self.lengths_B)


@dataclass
class SpeechBatch:
    """What the loader hands to an objective or a task: audio, and whatever else is known about each utterance.

    `seeds_B` (int64) is drawn by the loader from the run's seed, the utterance and its epoch. Masks, negatives and code
    noise take their randomness from it (`core.rng.utterance_generators`), so they do not depend on how a batch was divided
    over ranks and accumulation steps.
    """

    audio: Packed  # samples, mono, at `sample_rate`
    ids: list[str]
    languages: list[str | None]
    seeds_B: Tensor
    sample_rate: int = 16_000
    speakers: list[str | None] | None = None
    text: list[str | None] | None = None
    phones: list[list[str] | None] | None = None  # of the utterance's phone alignment, without silences
    translation: list[str | None] | None = None
    units: Packed | None = None  # one label (int64) per frame or token
    folders: list[str | None] | None = None  # name of the folder that each recording lies in: some corpora label so
    state: Mapping[str, Any] = field(default_factory=dict)  # of the loader, after this batch

    def __len__(self) -> int:
        """Return B, the number of utterances."""
        return len(self.ids)

    @property
    def seconds(self) -> float:
        """Seconds of audio in the batch."""
        return self.audio.values_ND.shape[0] / self.sample_rate

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> SpeechBatch:
        """Move every packed field to a device."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Packed)
        }
        return replace(self, **moved)

    def pin_memory(self) -> SpeechBatch:
        """Copy every packed field to page-locked memory (called by the data loader)."""
        pinned: dict[str, Any] = {
            f.name: value.pin_memory() for f in fields(self) if isinstance(value := getattr(self, f.name), Packed)
        }
        return replace(self, **pinned)

    def select(self, indices: Sequence[int]) -> SpeechBatch:
        """Return the batch of these utterances, in this order."""

        def pick(value: Any) -> Any:
            if isinstance(value, Packed):
                parts = value.split()
                return Packed.from_list([parts[i] for i in indices])
            if isinstance(value, list):
                return [value[i] for i in indices]
            return value

        chosen = {f.name: pick(getattr(self, f.name)) for f in fields(self)}
        return replace(self, **{**chosen, "seeds_B": self.seeds_B[list(indices)]})


@dataclass
class FrontendOutput:
    """What the frontend makes of audio.

    `features` are its last layer's outputs (wav2vec 2.0 penalises their energy); `latents` are the same frames normalised:
    what `context` reads and what quantizers look at. They may be the same tensor.
    """

    features: Packed
    latents: Packed


@dataclass
class EncoderOutput:
    """L+1 states: item 0 the input of the first block, the last one after the final norm."""

    states: list[Packed]

    @property
    def last(self) -> Packed:
        """The state after the last block and the final norm."""
        return self.states[-1]


@dataclass
class LossTerms:
    """What a `Trainable` returns: a sum over targets, how many targets there were, and what to log.

    The loop divides by the number of targets over all ranks and accumulation steps. A metric is (sum, count): it is added up
    over micro-batches and ranks, and logged as the quotient.
    """

    total: Tensor  # scalar, a sum
    num_targets: int
    metrics: dict[str, tuple[Tensor | float, Tensor | float]] = field(default_factory=dict)

    def __add__(self, other: LossTerms) -> LossTerms:
        """Add the terms of another part of the same batch."""
        metrics = dict(self.metrics)
        for name, (total, count) in other.metrics.items():
            old_total, old_count = metrics.get(name, (0.0, 0.0))
            metrics[name] = (old_total + total, old_count + count)
        return LossTerms(self.total + other.total, self.num_targets + other.num_targets, metrics)


def iterate_spans(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each utterance in a packed stream with these lengths."""
    start = 0
    for n in lengths:
        yield start, start + n
        start += n
