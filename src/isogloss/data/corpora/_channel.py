"""What a recording channel does to speech: a room, noise, a telephone. Each step keeps length and timing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy import fft, signal

from isogloss.core.errors import ConfigError

SAMPLE_RATE = 16_000
TELEPHONE_BAND_HZ = (300.0, 3400.0)
_TELEPHONE_RATE = 8_000
_MU = 255.0

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Channel:
    """Settings of a channel; ranges are (lowest, highest), drawn uniformly for every utterance.

    `snr_db`: speech to noise, over the parts that hold speech; `reverberation_seconds`: time in which the room's sound falls
    by 60 dB; `telephone`: 300 to 3400 Hz, 8 kHz, 8 bits of μ-law.
    """

    snr_db: tuple[float, float] | None = None
    reverberation_seconds: tuple[float, float] | None = None
    telephone: bool = False

    def __post_init__(self) -> None:
        for name in ("snr_db", "reverberation_seconds"):
            limits = getattr(self, name)
            if limits is not None and not limits[0] <= limits[1]:
                raise ConfigError(f"`{name}` must be (lowest, highest), but is {limits}")
        if self.reverberation_seconds is not None and self.reverberation_seconds[0] <= 0:
            raise ConfigError(f"`reverberation_seconds` must be above 0, but is {self.reverberation_seconds}")


CHANNELS = {
    "clean": Channel(),
    "room": Channel(reverberation_seconds=(0.2, 0.6), snr_db=(20.0, 35.0)),
    "noisy": Channel(snr_db=(5.0, 15.0)),
    "telephone": Channel(telephone=True, snr_db=(20.0, 35.0)),
}


def apply_channel(audio_T: Audio, channel: Channel, rng: np.random.Generator) -> Audio:
    """Send 16 kHz speech through a channel: first the room, then the noise, then the telephone."""
    if channel.reverberation_seconds is not None:
        audio_T = reverberate(audio_T, float(rng.uniform(*channel.reverberation_seconds)), rng)
    if channel.snr_db is not None:
        audio_T = add_noise(audio_T, float(rng.uniform(*channel.snr_db)), rng)
    if channel.telephone:
        audio_T = telephone(audio_T)
    peak = float(np.abs(audio_T).max(initial=0.0))
    return audio_T if peak <= 1.0 else (audio_T / peak).astype(np.float32)


def reverberate(audio_T: Audio, seconds: float, rng: np.random.Generator) -> Audio:
    """Add the reverberation of a synthetic room: noise that decays by 60 dB in `seconds`, 5 dB below the direct sound.

    The direct sound stays where it was, so alignments hold; what would ring beyond the end is cut off.
    """
    times_T = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail_T = rng.standard_normal(len(times_T)) * 10.0 ** (-3.0 * times_T / seconds)
    tail_T[: int(0.003 * SAMPLE_RATE)] = 0.0  # nothing comes back sooner than from a metre away
    tail_T *= np.sqrt(10.0**-0.5 / max(float((tail_T**2).sum()), 1e-12))
    tail_T[:1] = 1.0
    wet_T: Audio = signal.fftconvolve(audio_T, tail_T)[: len(audio_T)].astype(np.float32)
    return wet_T


def add_noise(audio_T: Audio, snr_db: float, rng: np.random.Generator) -> Audio:
    """Add pink noise at a signal-to-noise ratio; the signal's power is that of the frames within 40 dB of the loudest."""
    length = fft.next_fast_len(len(audio_T), real=True)
    spectrum = fft.rfft(rng.standard_normal(length))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1.0))
    noise_T = fft.irfft(spectrum, n=length)[: len(audio_T)]
    power = speech_power(audio_T)
    noise_T *= np.sqrt(power / 10.0 ** (snr_db / 10.0) / max(float((noise_T**2).mean()), 1e-20))
    noisy_T: Audio = (audio_T + noise_T).astype(np.float32)
    return noisy_T


def telephone(audio_T: Audio) -> Audio:
    """Send speech through a telephone: band-limited without delay, sampled at 8 kHz, quantised by 8 bits of μ-law (G.711)."""
    narrow_T = soxr.resample(audio_T, SAMPLE_RATE, _TELEPHONE_RATE)
    bands = signal.butter(6, TELEPHONE_BAND_HZ, "bandpass", fs=_TELEPHONE_RATE, output="sos")
    narrow_T = np.clip(signal.sosfiltfilt(bands, narrow_T), -1.0, 1.0)
    compressed_T = np.sign(narrow_T) * np.log1p(_MU * np.abs(narrow_T)) / np.log1p(_MU)
    coded_T = np.round(compressed_T * 127.0) / 127.0
    decoded_T = np.sign(coded_T) * np.expm1(np.abs(coded_T) * np.log1p(_MU)) / _MU
    wide_T = soxr.resample(decoded_T.astype(np.float32), _TELEPHONE_RATE, SAMPLE_RATE)
    result_T = np.zeros_like(audio_T)
    result_T[: len(wide_T)] = wide_T[: len(audio_T)]
    return result_T


def speech_power(audio_T: Audio) -> float:
    """Return the mean power of the 20 ms frames that are within 40 dB of the loudest."""
    frame = SAMPLE_RATE // 50
    whole = len(audio_T) // frame * frame
    powers = (audio_T[:whole].reshape(-1, frame).astype(np.float64) ** 2).mean(axis=1)
    if len(powers) == 0 or powers.max() == 0:
        return float((audio_T.astype(np.float64) ** 2).mean()) if len(audio_T) else 0.0
    return float(powers[powers > powers.max() * 1e-4].mean())
