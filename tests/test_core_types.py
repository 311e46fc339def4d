"""Packed streams, batches, seeds and lengths."""

from __future__ import annotations

import pytest
import torch

from isogloss.core.lengths import ConvGeometry, trim_to_shortest
from isogloss.core.rng import derive_seed, utterance_generators
from isogloss.core.types import LossTerms, Packed, SpeechBatch


def test_packed_splits_pads_and_averages_like_the_list_it_came_from() -> None:
    items = [torch.randn(n, 3) for n in (4, 1, 7)]
    packed = Packed.from_list(items)
    assert packed.sizes == [4, 1, 7]
    assert packed.offsets == [0, 4, 5, 12]
    for part, item in zip(packed.split(), items, strict=True):
        assert torch.equal(part, item)
    assert packed.padded().shape == (3, 7, 3)
    assert torch.equal(packed.padded()[1, 1:], torch.zeros(6, 3))
    torch.testing.assert_close(packed.mean(), torch.stack([item.mean(0) for item in items]))
    again = Packed.from_padded(packed.padded(), packed.lengths_B)
    assert torch.equal(again.values_ND, packed.values_ND)


def test_packed_keeps_rows_of_each_utterance() -> None:
    packed = Packed(torch.arange(6), torch.tensor([4, 0, 2]))
    kept = packed.rows(torch.tensor([True, False, True, False, False, True]))
    assert kept.values_ND.tolist() == [0, 2, 5]
    assert kept.sizes == [2, 0, 1]


def test_packed_refuses_lengths_that_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="adds up to 5"):
        Packed(torch.zeros(4, 2), torch.tensor([2, 3]))


def test_batch_selects_every_field() -> None:
    batch = SpeechBatch(
        audio=Packed.from_list([torch.zeros(2), torch.ones(3), torch.full((1,), 2.0)]),
        ids=["a", "b", "c"],
        languages=["fr", None, "mdw"],
        seeds_B=torch.tensor([1, 2, 3]),
        speakers=["x", "y", "z"],
    )
    chosen = batch.select([2, 0])
    assert chosen.ids == ["c", "a"]
    assert chosen.speakers == ["z", "x"]
    assert chosen.seeds_B.tolist() == [3, 1]
    assert chosen.audio.values_ND.tolist() == [2.0, 0.0, 0.0]


def test_loss_terms_add_up() -> None:
    both = LossTerms(torch.tensor(1.0), 2, {"accuracy": (1, 2)}) + LossTerms(torch.tensor(3.0), 5, {"accuracy": (4, 5)})
    assert both.total == 4
    assert both.num_targets == 7
    assert both.metrics["accuracy"] == (5, 7)


def test_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    assert derive_seed("run", 1, 2) == derive_seed("run", 1, 2)
    seeds = {derive_seed(*p) for p in [("run", 1, 2), ("run", 12), ("run1", 2), ("run", "1", 2), ("run", 2, 1)]}
    assert len(seeds) == 5
    first, again = (utterance_generators(torch.tensor([7, 8]), "masks") for _ in range(2))
    assert [torch.rand(1, generator=g).item() for g in first] == [torch.rand(1, generator=g).item() for g in again]


def test_geometry_of_wav2vec2_and_cpc() -> None:
    wav2vec2 = ConvGeometry((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
    assert (wav2vec2.hop, wav2vec2.receptive_field) == (320, 400)
    assert [wav2vec2.num_frames(n) for n in (250_000, 320_000, 16_000, 400, 399)] == [781, 999, 49, 1, 0]
    cpc = ConvGeometry((10, 8, 4, 4, 4), (5, 4, 2, 2, 2), (3, 2, 1, 1, 1))
    assert (cpc.hop, cpc.receptive_field, cpc.first_sample) == (160, 465, -153)
    assert [cpc.num_frames(n) for n in (20_480, 16_000, 15_999)] == [128, 100, 100]


def test_labels_of_another_rate_are_refused() -> None:
    assert trim_to_shortest([49, 50], [50, 50]) == [49, 50]
    with pytest.raises(ValueError, match="another rate"):
        trim_to_shortest([49], [98])
