"""Span masks: coverage and run lengths of arXiv 2006.11477, and fairseq's equalised masks."""

from __future__ import annotations

import pytest
import torch

from isogloss.core.rng import utterance_generators
from isogloss.corruption.spans import mask_spans


def draw(lengths: list[int], seed: int = 0, **changes: object) -> list[torch.Tensor]:
    seeds_B = torch.arange(len(lengths)) + 1000 * seed
    settings: dict = {"probability": 0.65, "span": 10} | changes
    mask_N = mask_spans(lengths, utterance_generators(seeds_B, "masks"), **settings)
    assert mask_N.dtype == torch.bool
    return list(mask_N.split(lengths))


def runs(mask_S: torch.Tensor) -> list[int]:
    """Lengths of the runs of True, counted one frame at a time."""
    found, current = [], 0
    for value in [*mask_S.tolist(), False]:
        if value:
            current += 1
        elif current:
            found.append(current)
            current = 0
    return found


def test_whole_spans_hide_49_percent() -> None:
    masks = draw([781] * 400)
    covered = torch.cat(masks).float().mean()
    # 1 − (1 − .065)^10 = 48.9 % for starts over all frames; 49.0 % simulated for S = 781. Standard error about 0.1 %.
    assert abs(float(covered) - 0.49) < 0.005
    lengths = [n for mask in masks for n in runs(mask)]
    assert min(lengths) >= 10
    assert abs(sum(lengths) / len(lengths) - 14.8) < 0.4


@pytest.mark.parametrize(
    ("frames", "batch", "masked", "mean_run", "short"),
    [(781, 1, 0.490, 14.8, 0.0), (781, 6, 0.460, 8.2, 0.58), (500, 32, 0.427, 5.5, 0.81), (200, 32, 0.397, 4.2, 0.91)],
)
def test_equalised_masks_give_the_published_simulation(
    frames: int, batch: int, masked: float, mean_run: float, short: float
) -> None:
    total, lengths = 0, []
    batches = 240 if batch < 32 else 24
    for index in range(batches):
        masks = draw([frames] * batch, seed=index, equalize=True)
        assert len({int(mask.sum()) for mask in masks}) == 1
        total += sum(int(mask.sum()) for mask in masks)
        lengths += [n for mask in masks for n in runs(mask)]
    assert abs(total / (batches * batch * frames) - masked) < 0.01
    assert abs(sum(lengths) / len(lengths) - mean_run) < 0.05 * mean_run
    assert abs(sum(n < 10 for n in lengths) / len(lengths) - short) < 0.02


@pytest.mark.parametrize(("frames", "num_spans"), [(20, 2.0), (40, 2.6)])
def test_every_start_is_equally_likely_and_the_last_frame_is_never_hidden(frames: int, num_spans: float) -> None:
    """⌊.65 S/10 + U(0,1)⌋ spans, 2.6 of them on average at S = 40, and two at S = 20, where it would be 1.3."""
    masks = torch.stack(draw([frames] * 4000))
    # The first frame is masked by a start at 0 alone, the last but one by a start at S − 11 alone.
    expected = num_spans / (frames - 10)
    assert abs(float(masks[:, 0].float().mean()) - expected) < 0.02
    assert abs(float(masks[:, frames - 2].float().mean()) - expected) < 0.02
    assert not masks[:, frames - 1].any()


@pytest.mark.parametrize("frames", [0, 1, 2, 9, 10, 11, 12])
def test_very_short_utterances(frames: int) -> None:
    (mask,) = draw([frames])
    assert len(mask) == frames
    if frames <= 10:
        assert not mask.any()
    else:
        assert 10 <= int(mask.sum()) < frames


def test_a_short_utterance_does_not_empty_the_equalised_batch() -> None:
    short, first, second = draw([5, 100, 300], equalize=True)
    assert not short.any()
    assert int(first.sum()) == int(second.sum()) >= 10


def test_masks_depend_on_the_utterance_alone() -> None:
    seeds_B = torch.tensor([7, 8])
    both = mask_spans([120, 90], utterance_generators(seeds_B, "masks"), probability=0.65, span=10)
    alone = mask_spans([90], utterance_generators(seeds_B[1:], "masks"), probability=0.65, span=10)
    assert torch.equal(both[120:], alone)


def test_no_utterances() -> None:
    assert mask_spans([], [], probability=0.65, span=10).shape == (0,)
