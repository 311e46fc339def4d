"""The CTC probe is the published map, and reads a planted code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isogloss.core.types import Packed
from isogloss.evaluation.ctc_probe import CtcHead, CtcProbeSettings, kernel_and_stride, probe_ctc
from planted import PlantedSource, planted_splits


def test_ctc_head_is_a_linear_map_of_eight_frames_every_four() -> None:
    torch.manual_seed(0)
    head = CtcHead(5, 3, 8, 4)
    lengths = [21, 7, 8]
    values = torch.randn(sum(lengths), 5)
    logits = head(Packed(values, torch.tensor(lengths)))
    assert logits.sizes == [4, 0, 1]
    flat = head.conv.weight.permute(0, 2, 1).reshape(4, -1)
    for row, start in zip(logits.values_ND, [0, 4, 8, 12, 28], strict=True):
        torch.testing.assert_close(row, flat @ values[start : start + 8].flatten() + head.conv.bias)
    assert kernel_and_stride(100.0, CtcProbeSettings()) == (8, 4)
    assert kernel_and_stride(50.0, CtcProbeSettings()) == (4, 2)


def test_ctc_probe_reads_a_planted_code() -> None:
    splits = planted_splits()
    settings = CtcProbeSettings(learning_rate=2e-2, epochs=12, beam=5)
    result = probe_ctc(PlantedSource(noise=0.1), splits, layer=1, settings=settings)
    assert result.per < 0.1
    assert (result.kernel, result.stride) == (8, 4)
    assert result.errors_B.sum() / result.num_phones_B.sum() == pytest.approx(result.per)
    assert np.mean(result.errors_B / result.num_phones_B) == pytest.approx(result.per_utterance)
    assert result.validation_losses[result.best_epoch - 1] == min(result.validation_losses)
    noise = probe_ctc(PlantedSource(), splits, layer=0, settings=settings)
    assert noise.per > 0.5
