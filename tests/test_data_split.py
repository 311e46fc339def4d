"""Divisions share no speaker, recording or content; they depend on the seed and not on the order."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import MonoCut

from data_helpers import make_cut
from isogloss.core.errors import DataError
from isogloss.data.split import (
    check_disjoint,
    draw_few_shots,
    find_overlap,
    split_by_recording,
    split_by_source,
    split_by_speaker,
)


def _corpus(num_speakers: int = 12, per_speaker: int = 5, language: str = "fr", source: str = "s") -> list[MonoCut]:
    return [
        make_cut(
            f"{source}-{language}-{speaker}-{number}",
            seconds=1.0 + 0.1 * number,
            language=language,
            speaker=f"spk{speaker}",
            text=f"text {number}",
            source=source,
            sha256=f"{source}{language}{speaker}.{number}",
        )
        for speaker in range(num_speakers)
        for number in range(per_speaker)
    ]


def _ids(parts: dict[str, list[MonoCut]]) -> dict[str, list[str]]:
    return {name: sorted(cut.id for cut in part) for name, part in parts.items()}


def test_speakers_are_kept_apart_in_each_language_with_about_the_shares() -> None:
    cuts = _corpus(language="fr") + _corpus(language="sw")
    parts = split_by_speaker(cuts, {"train": 0.7, "dev": 0.15, "test": 0.15})
    assert sorted(itertools.chain(*_ids(parts).values())) == sorted(cut.id for cut in cuts)
    for name, share in (("train", 0.7), ("dev", 0.15), ("test", 0.15)):
        for language in ("fr", "sw"):
            seconds = sum(cut.duration for cut in parts[name] if cut.supervisions[0].language == language)
            assert abs(seconds / (12 * 6.0) - share) < 0.09
    for a, b in itertools.combinations(parts.values(), 2):
        assert not {cut.supervisions[0].speaker for cut in a} & {cut.supervisions[0].speaker for cut in b}


def test_the_order_of_the_corpus_and_another_language_change_nothing_but_the_seed_does() -> None:
    cuts = _corpus(20)
    shares = {"train": 0.8, "test": 0.2}
    first = _ids(split_by_speaker(cuts, shares, seed=1))
    shuffled = cuts.copy()
    random.Random(0).shuffle(shuffled)
    assert _ids(split_by_speaker(shuffled, shares, seed=1)) == first
    with_more = split_by_speaker(cuts + _corpus(language="sw", source="t"), shares, seed=1)
    assert {name: [i for i in ids if "-fr-" in i] for name, ids in _ids(with_more).items()} == first
    assert _ids(split_by_speaker(cuts, shares, seed=2)) != first


def test_speakers_linked_by_a_recording_or_a_content_stay_together() -> None:
    cuts = _corpus(8, 3)
    # a duplicate of spk0's recording under the name of spk1, and a dialogue of spk2 and spk3
    cuts.append(make_cut("copy", language="fr", speaker="spk1", source="s", sha256=cuts[0].custom["sha256"]))
    cuts += [
        make_cut("d1", recording="talk", language="fr", speaker="spk2", source="s"),
        make_cut("d2", recording="talk", start=1.0, language="fr", speaker="spk3", source="s"),
    ]
    for seed in range(10):
        parts = split_by_speaker(cuts, {"train": 0.5, "test": 0.5}, seed=seed)
        side = {cut.supervisions[0].speaker: name for name, part in parts.items() for cut in part}
        assert side["spk0"] == side["spk1"]
        assert side["spk2"] == side["spk3"]


def test_same_names_in_two_sources_are_two_speakers() -> None:
    assert not find_overlap(_corpus(source="a"), _corpus(source="b"))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 15), st.integers(0, 30)), min_size=4, max_size=60),
    st.integers(0, 5),
)
def test_any_corpus_is_divided_without_overlap_or_refused(items: list[tuple[int, int, int]], seed: int) -> None:
    cuts = [
        make_cut(
            f"c{n}", recording=f"r{recording}", language="fr", speaker=f"s{speaker}", source="x", sha256=f"h{content}"
        )
        for n, (speaker, recording, content) in enumerate(items)
    ]
    try:
        parts = split_by_speaker(cuts, {"train": 0.6, "test": 0.4}, seed=seed)
    except DataError:
        return
    assert not find_overlap(parts["train"], parts["test"])
    assert sorted(cut.id for part in parts.values() for cut in part) == sorted(cut.id for cut in cuts)
    assert all(parts.values())


def test_check_disjoint_names_what_is_shared() -> None:
    train, test = _corpus(2), _corpus(2)
    for cut in test:
        cut.id = f"new-{cut.id}"
        cut.recording.id = cut.id
        cut.recording.sources[0].source = f"/elsewhere/{cut.id}"
    with pytest.raises(DataError, match=r"2 speakers \(s/spk0, s/spk1\); 10 contents"):
        check_disjoint(train, test)
    for cut in test:
        cut.custom["sha256"] = f"other {cut.id}"
    with pytest.raises(DataError, match="speakers"):
        check_disjoint(train, test)
    check_disjoint(train, test, by_speaker=False)
    with pytest.raises(DataError, match="5 texts"):
        check_disjoint(train, test, by_speaker=False, texts=True)
    with pytest.raises(DataError, match=r"1 id \(s-fr-0-0\)"):
        check_disjoint(train, [train[0]], by_speaker=False)


def test_by_recording_and_by_source() -> None:
    cuts = [make_cut(f"u{n}", recording=f"r{n // 3}", language="fr", source="one") for n in range(30)]
    parts = split_by_recording(cuts, {"train": 0.8, "test": 0.2})
    assert {len(part) for part in parts.values()} == {24, 6}
    other = [
        make_cut(f"o{n}", language=language, source="two")
        for n in range(4)
        for language in ("fr", "sw")
        if n or language
    ]
    for cut in other:
        cut.id = f"{cut.id}-{cut.supervisions[0].language}"
    held = split_by_source(cuts + other, ["two"])
    assert {len(part) for part in held.values()} == {30, 8}
    shared = split_by_source(cuts + other, ["two"], only_shared_languages=True)
    assert {cut.supervisions[0].language for cut in shared["test"]} == {"fr"}
    with pytest.raises(DataError, match="known are one, two"):
        split_by_source(cuts + other, ["three"])
    with pytest.raises(DataError, match="train side is empty"):
        split_by_source(cuts, ["one"])


def test_few_shots_are_nested_and_take_speakers_in_turn() -> None:
    cuts = _corpus(6, 10) + _corpus(3, 10, language="sw")
    draws = draw_few_shots(cuts, [10, 2, 5])
    ids = {k: {cut.id for cut in draw} for k, draw in draws.items()}
    assert {k: len(v) for k, v in ids.items()} == {2: 4, 5: 10, 10: 20}
    assert ids[2] < ids[5] < ids[10]
    for k, num in ((2, 2), (5, 5), (10, 6)):
        assert len({cut.supervisions[0].speaker for cut in draws[k] if cut.supervisions[0].language == "fr"}) == num
    assert {cut.id for cut in draw_few_shots(cuts[::-1], [5])[5]} == ids[5]
    assert {cut.id for cut in draw_few_shots(cuts, [5], seed=1)[5]} != ids[5]
    with pytest.raises(DataError, match="sw has 30 cuts, but 31"):
        draw_few_shots(cuts, [31])


@pytest.mark.parametrize("shares", [{"train": 1.0}, {"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}])
def test_impossible_shares(shares: dict[str, float]) -> None:
    with pytest.raises(DataError, match="add up to 1"):
        split_by_speaker(_corpus(), shares)


def test_too_few_speakers_and_none() -> None:
    with pytest.raises(DataError, match="fr has 1 speaker that can be kept apart"):
        split_by_speaker(_corpus(1), {"train": 0.8, "test": 0.2})
    with pytest.raises(DataError, match="have no speaker"):
        split_by_speaker([make_cut("a", language="fr"), make_cut("b", language="fr")], {"train": 0.8, "test": 0.2})
