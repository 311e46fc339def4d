"""What is clustered: MFCC, log-mel, or the output of a layer, streamed utterance by utterance, with its geometry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.lengths import ConvGeometry
from isogloss.data.audio import read_audio
from isogloss.encoders.base import Encoder, pack_audio
from isogloss.evaluation.feature_cache import hash_encoder
from isogloss.evaluation.features import resolve_layers
from isogloss.hub.load import load_encoder
from isogloss.nn.filterbank import HOP, SAMPLE_RATE, WINDOW, log_mel, mfcc, normalize
from isogloss.training.iterations import LabelConfig


class Features(Protocol):
    """Frames of waveforms: what they are (JSON), how they lie in time, and how many numbers each has."""

    convention: dict[str, Any]
    geometry: ConvGeometry
    width: int

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Return S×D features of each waveform, float32."""
        ...


class SpectralFeatures:
    """MFCC (39 numbers) or log-mel energies (80) at 100 Hz, Kaldi's definitions without padding."""

    geometry = ConvGeometry((WINDOW,), (HOP,))

    def __init__(self, name: str, *, normalize: bool) -> None:
        self.name, self.normalize = name, normalize
        self.width = 39 if name == "mfcc" else 80
        self.convention = {"features": name, "normalize": normalize}

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Return S×D features of each waveform."""
        found = [mfcc(wave_T) if self.name == "mfcc" else log_mel(wave_T) for wave_T in waveforms]
        return [normalize(values_SD) for values_SD in found] if self.normalize else found


class LayerFeatures:
    """The output of one block of an encoder, after its residual, for whole utterances.

    fairseq cuts long ones into 100 s for this, whose edges then have other features; minimal-hubert takes the feed-forward
    branch before the residual. Fitting and labelling must agree on it, so it is written down with the clusters.
    """

    def __init__(self, encoder: Encoder, layer: int, *, normalize: bool, device: torch.device) -> None:
        if encoder.sample_rate != SAMPLE_RATE:
            raise ConfigError(
                f"labels are made at {SAMPLE_RATE} samples a second, but the model has {encoder.sample_rate}"
            )
        (self.layer,) = resolve_layers([layer], encoder.num_layers)
        self.encoder, self.normalize, self.device = encoder.eval().to(device), normalize, device
        self.geometry, self.width = encoder.geometry, encoder.width
        self.convention = {
            "features": "model",
            "layer": self.layer,
            "output": "block output",
            "normalize": normalize,
            "model_sha256": hash_encoder(encoder),
        }

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Return S×D outputs of the layer for each waveform."""
        long_enough = [i for i, wave in enumerate(waveforms) if self.encoder.num_frames(len(wave)) > 0]
        found = [torch.zeros(0, self.width)] * len(waveforms)
        if long_enough:
            prepared = [self.encoder.prepare(waveforms[i].to(self.device)) for i in long_enough]
            parts = self.encoder(pack_audio(prepared)).states[self.layer].split()
            for i, values_SD in zip(long_enough, parts, strict=True):
                values_SD = values_SD.float().cpu()
                found[i] = normalize(values_SD) if self.normalize else values_SD
        return found


def build_features(config: LabelConfig, device: torch.device) -> Features:
    """Return the features that a configuration names."""
    if config.features != "model":
        return SpectralFeatures(config.features, normalize=config.normalize)
    if config.model is None or config.layer is None:
        raise ConfigError(
            '`labels.model` must name a model where `labels.features` is "model"; give it with `--from MODEL`'
        )
    encoder = load_encoder(config.model)
    if config.language is not None:
        encoder = encoder.for_language(config.language)
    elif encoder.edits is not None:
        raise ConfigError(
            f"{config.model} was trained with its {encoder.edits.kind}, another set for each language, and is not itself without them: "
            f"name one with `--for-language` (`labels.language`) of {', '.join(encoder.edits.languages)}"
        )
    return LayerFeatures(encoder, config.layer, normalize=config.normalize, device=device)


def stream_features(features: Features, cuts: Iterable[Any], batch_seconds: float) -> Iterator[tuple[Any, Tensor]]:
    """Yield each cut with its features, in order, while a thread decodes the next batch."""

    def decode(batch: list[Any]) -> list[Tensor]:
        return [torch.from_numpy(read_audio(cut, sample_rate=SAMPLE_RATE)) for cut in batch]

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: list[tuple[list[Any], Any]] = []
        for batch in _batches(cuts, batch_seconds):
            waiting.append((batch, pool.submit(decode, batch)))
            if len(waiting) > 1:
                yield from _computed(features, *waiting.pop(0))
        for entry in waiting:
            yield from _computed(features, *entry)


def _computed(features: Features, batch: list[Any], decoded: Any) -> Iterator[tuple[Any, Tensor]]:
    for cut, values_SD in zip(batch, features(decoded.result()), strict=True):
        if not bool(torch.isfinite(values_SD).all()):
            raise DataError(
                f"the features of {cut.id} are not finite; usually the model diverged: try an earlier checkpoint"
            )
        yield cut, values_SD


def _batches(cuts: Iterable[Any], seconds: float) -> Iterator[list[Any]]:
    batch: list[Any] = []
    length = 0.0
    for cut in cuts:
        if batch and length + cut.duration > seconds:
            yield batch
            batch, length = [], 0.0
        batch.append(cut)
        length += cut.duration
    if batch:
        yield batch
