"""The packed filterbank against one utterance at a time, and against a definition written out slowly."""

from __future__ import annotations

import math

import pytest
import torch

from isogloss.core.types import Packed
from isogloss.nn import filterbank
from isogloss.nn.filterbank import log_mel, normalize, packed_log_mel


def slow_log_mel(waveform: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Kaldi's steps in float64, one frame, one bin and one frequency at a time."""

    def mel(hz: float) -> float:
        return 1127.0 * math.log(1 + hz / 700.0)

    low, high = mel(20.0), mel(7600.0)
    step = (high - low) / (num_bins + 1)
    rows = []
    for start in range(0, len(waveform) - 399, 160):
        frame = waveform[start : start + 400].double()
        frame = frame - frame.mean()
        emphasised = frame.clone()
        emphasised[1:] -= 0.97 * frame[:-1]
        emphasised[0] -= 0.97 * frame[0]
        window = torch.tensor([(0.5 - 0.5 * math.cos(2 * math.pi * n / 399)) ** 0.85 for n in range(400)]).double()
        power = torch.fft.fft(emphasised * window, n=512)[:257].abs() ** 2
        row = []
        for b in range(num_bins):
            left, center, right = (low + step * (b + i) for i in range(3))
            energy = 0.0
            for i in range(257):
                m = mel(i * 16_000 / 512)
                if left < m < right:
                    energy += float(power[i]) * min((m - left) / (center - left), (right - m) / (right - center))
            row.append(math.log(max(energy, 1.1920929e-07)))
        rows.append(row)
    return torch.tensor(rows)


def test_the_definition() -> None:
    torch.manual_seed(0)
    waveform = torch.randn(1000) * torch.linspace(0, 1, 1000)
    torch.testing.assert_close(log_mel(waveform, 20), slow_log_mel(waveform, 20), atol=2e-4, rtol=0)


@pytest.mark.parametrize("piece", [3, 8192])
def test_packed_equals_alone(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filterbank, "_PIECE", piece)
    torch.manual_seed(0)
    waveforms = [torch.randn(n) for n in (4000, 399, 400, 0, 1999)]
    packed = packed_log_mel(Packed.from_list(waveforms), 23)
    assert packed.sizes == [23, 0, 1, 0, 10]
    for part, waveform in zip(packed.split(), waveforms, strict=True):
        torch.testing.assert_close(part, log_mel(waveform, 23), atol=1e-5, rtol=1e-5)


def test_autocast_does_not_touch_it() -> None:
    audio = Packed.from_list([torch.randn(4000)])
    expected = packed_log_mel(audio).values_ND
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed_log_mel(audio).values_ND, expected)


def test_normalised() -> None:
    values = normalize(torch.randn(50, 4) * 7 + 3)
    torch.testing.assert_close(values.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(0, unbiased=False), torch.ones(4), atol=1e-4, rtol=0)
    assert normalize(torch.zeros(0, 4)).shape == (0, 4)
