"""Log-mel energies, cepstra and their slopes, per utterance, on whatever device the samples are.

Kaldi's definitions (25 ms Povey windows every 10 ms, pre-emphasis 0.97, HTK mel scale from 20 Hz to 400 Hz below Nyquist),
without dither and without padding, so frame i is centred at 12.5 + 10·i ms.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from isogloss.core.types import Packed

SAMPLE_RATE = 16_000
WINDOW = 400
HOP = 160
_FFT = 512
_LOW_HZ = 20.0
_HIGH_HZ = SAMPLE_RATE / 2 - 400.0
_FLOOR = 1.1920929e-07  # the smallest energy whose logarithm is taken: float32's epsilon, as in Kaldi
_PIECE = 8192  # windows whose spectra are held at a time: an hour of audio needs no more memory than 82 s


def log_mel(waveform_T: Tensor, num_bins: int = 80) -> Tensor:
    """Return log-mel energies of a 16 kHz waveform, S×F; no rows where it is shorter than a window."""
    if len(waveform_T) < WINDOW:
        return waveform_T.new_zeros(0, num_bins)
    return _log_mel_of_windows(waveform_T.unfold(0, WINDOW, HOP), num_bins)


def packed_log_mel(audio: Packed, num_bins: int = 80) -> Packed:
    """Return the log-mel energies of each utterance of a packed stream of 16 kHz samples, N×F, float32 whatever autocast says."""
    with torch.autocast(audio.values_ND.device.type, enabled=False):
        samples_T = audio.values_ND.float()
        windows = [part.unfold(0, WINDOW, HOP) for part in samples_T.split(audio.sizes) if len(part) >= WINDOW]
        frames_B = [max((n - WINDOW) // HOP + 1, 0) for n in audio.sizes]
        if not windows:
            return Packed(samples_T.new_zeros(0, num_bins), torch.tensor(frames_B, dtype=torch.int64))
        pieces = [
            _log_mel_of_windows(piece, num_bins) for utterance in windows for piece in utterance.split(_PIECE, dim=0)
        ]
        return Packed(torch.cat(pieces), torch.tensor(frames_B, dtype=torch.int64))


def packed_kaldi_log_mel(audio: Packed, num_bins: int = 80, *, is_normalized: bool) -> Packed:
    """Return Kaldi's log-mel energies of 16-bit samples with bins up to 8 kHz, N×F float32: what w2v-BERT 2.0 reads.

    Samples in [−1, 1] are scaled by 2^15, so the floor lies 90 dB lower than that of `packed_log_mel`. `is_normalized` brings
    every bin of an utterance to zero mean and unit *unbiased* variance (arXiv 2312.05187, §3.2.1; as Hugging Face's
    SeamlessM4TFeatureExtractor). Computed in float64, as there: quiet bins beside loud ones lose digits in float32.
    """
    device = audio.values_ND.device
    parts = []
    for waveform_T in audio.split():
        if len(waveform_T) < WINDOW:
            parts.append(torch.zeros(0, num_bins, device=device))
            continue
        windows_SW = waveform_T.unfold(0, WINDOW, HOP)
        values_SF = torch.cat([_kaldi_log_mel_of_windows(piece, num_bins) for piece in windows_SW.split(_PIECE)])
        if is_normalized and len(values_SF) > 1:
            variance_F = values_SF.var(0, unbiased=True)
            values_SF = (values_SF - values_SF.mean(0)) / torch.sqrt(variance_F + 1e-7)
        elif is_normalized:  # one frame has no variance
            values_SF = torch.zeros_like(values_SF)
        parts.append(values_SF)
    return Packed.from_list(parts)


def mfcc(waveform_T: Tensor) -> Tensor:
    """Return 13 cepstral coefficients (of 23 log-mel energies, lifter 22) with Δ and ΔΔ, S×39."""
    cepstra = log_mel(waveform_T, 23) @ _cosines(23, 13, waveform_T.device)
    first = deltas(cepstra)
    return torch.cat([cepstra, first, deltas(first)], dim=1)


def deltas(values_SD: Tensor) -> Tensor:
    """Return the slope of the regression line over five frames, edges repeated (HTK book, eq. 5.16)."""
    if len(values_SD) == 0:
        return values_SD
    padded = torch.cat([values_SD[:1]] * 2 + [values_SD] + [values_SD[-1:]] * 2)
    n = len(values_SD)
    return (padded[3 : 3 + n] - padded[1 : 1 + n] + 2 * (padded[4 : 4 + n] - padded[:n])) / 10


def normalize(values_SD: Tensor) -> Tensor:
    """Bring every dimension to zero mean and unit variance over the frames."""
    if len(values_SD) == 0:
        return values_SD
    return (values_SD - values_SD.mean(0)) / (values_SD.std(0, unbiased=False) + 1e-5)


def _log_mel_of_windows(windows_SW: Tensor, num_bins: int) -> Tensor:
    frames = windows_SW - windows_SW.mean(dim=1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    power = torch.fft.rfft(frames * _window(frames.device), n=_FFT).abs().square()
    return torch.log((power @ _filters(num_bins, frames.device)).clamp(min=_FLOOR))


def _kaldi_log_mel_of_windows(windows_SW: Tensor, num_bins: int) -> Tensor:
    frames = windows_SW.double() * 2**15
    frames = frames - frames.mean(dim=1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    device = frames.device
    power = torch.fft.rfft(frames * _window(device, torch.float64), n=_FFT).abs().square()
    energies = power @ _filters(num_bins, device, SAMPLE_RATE / 2, torch.float64)
    return torch.log(energies.clamp(min=_FLOOR)).float()


@cache
def _window(device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    n = torch.arange(WINDOW, dtype=torch.float64)
    return ((0.5 - 0.5 * torch.cos(2 * math.pi * n / (WINDOW - 1))) ** 0.85).to(dtype).to(device)


@cache
def _filters(
    num_bins: int, device: torch.device, high_hz: float = _HIGH_HZ, dtype: torch.dtype = torch.float32
) -> Tensor:
    def mel(hz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hz / 700.0)

    low, high = mel(torch.tensor([_LOW_HZ, high_hz], dtype=dtype)).tolist()
    edges = torch.linspace(low, high, num_bins + 2, dtype=dtype)
    bins = mel(torch.arange(_FFT // 2 + 1, dtype=dtype) * (SAMPLE_RATE / _FFT))[:, None]
    up = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(up, down).clamp(min=0.0).to(device)


@cache
def _cosines(num_bins: int, num_coefficients: int, device: torch.device) -> Tensor:
    k = torch.arange(num_coefficients, dtype=torch.float64)
    n = torch.arange(num_bins, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi / num_bins * (n + 0.5) * k) * math.sqrt(2.0 / num_bins)
    basis[:, 0] = math.sqrt(1.0 / num_bins)
    return (basis * (1 + 11 * torch.sin(math.pi * k / 22))).float().to(device)
