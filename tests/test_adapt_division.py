"""Target audio in three parts: nothing is on two sides, and where two parts cannot be had it is said."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from isogloss.adapt._division import Division, divide
from isogloss.core.errors import DataError
from isogloss.data.split import find_overlap


def cuts_of(language: str, speakers: list[str | None], each: int = 2) -> list[MonoCut]:
    cuts = []
    for number, speaker in enumerate(speaker for speaker in speakers for _ in range(each)):
        name = f"{language}{number}"
        source = AudioSource("file", [0], f"/{name}.wav")
        recording = Recording(name, [source], 16_000, 32_000, 2.0, channel_ids=[0])
        spoken = SupervisionSegment(name, name, 0, 2.0, language=language, speaker=speaker)
        cuts.append(MonoCut(name, 0, 2.0, 0, recording=recording, supervisions=[spoken]))
    return cuts


def speakers(cuts: list[MonoCut]) -> set[str | None]:
    return {cut.supervisions[0].speaker for cut in cuts}


def check(division: Division, cuts: list[MonoCut]) -> None:
    parts = (division.train, division.choosing, division.reporting)
    assert {cut.id for part in parts for cut in part} == {cut.id for cut in cuts}
    for first, second in itertools.combinations(parts, 2):
        shared = find_overlap(first, second).shared
        assert not shared["id"]
        assert not shared["recording"]


def test_with_many_speakers_each_part_has_its_own() -> None:
    cuts = cuts_of("fr", list("abcdefgh")) + cuts_of("nl", list("ijklmnop"))
    division = divide(cuts, 0.3, seed=1)
    check(division, cuts)
    parts = (division.train, division.choosing, division.reporting)
    for first, second in itertools.combinations(parts, 2):
        assert speakers(first).isdisjoint(speakers(second))
    for part in parts:
        assert {cut.supervisions[0].language for cut in part} == {"fr", "nl"}
    assert (division.held_out_by, division.reported_by, division.in_both) == ("speaker", "speaker", ())


def test_with_few_speakers_the_held_out_parts_are_apart_by_recording() -> None:
    cuts = cuts_of("fr", ["a", "b", "c"])
    division = divide(cuts, 0.3, seed=1)
    check(division, cuts)
    assert speakers(division.train).isdisjoint(speakers([*division.choosing, *division.reporting]))
    assert (division.held_out_by, division.reported_by) == ("speaker", "recording")


@pytest.mark.parametrize("names", [["a", "b"], [None] * 4])
def test_without_speakers_the_parts_are_apart_by_recording(names: list[str | None]) -> None:
    cuts = cuts_of("fr", names)
    division = divide(cuts, 0.3, seed=1)
    check(division, cuts)
    assert (division.held_out_by, division.reported_by, division.in_both) == ("recording", "recording", ())


def test_too_little_for_two_parts_is_in_both_and_named() -> None:
    plenty, little = cuts_of("fr", list("abcdefgh")), cuts_of("nl", ["i"])
    division = divide([*plenty, *little], 0.3, seed=1)
    assert division.in_both == ("nl",)
    for part in (division.choosing, division.reporting):
        assert len([cut for cut in part if cut.supervisions[0].language == "nl"]) == 1
    assert (division.held_out_by, division.reported_by) == ("speaker and recording", "speaker")
    assert not find_overlap(division.train, [*division.choosing, *division.reporting]).shared["recording"]
    with pytest.raises(DataError, match="1 recording"):
        divide(cuts_of("nl", ["i"], each=1), 0.3, seed=1)


def test_a_recording_of_two_languages_stays_on_one_side(tmp_path: Path) -> None:
    french, dutch = cuts_of("fr", list("abcdefgh")), cuts_of("nl", ["i", "j"])
    for cut in french[::3]:  # a language that is divided by speaker has parts of the recordings of one that is not
        cut.recording = dutch[0].recording
    cuts = [*french, *dutch]
    division = divide(cuts, 0.3, seed=1)
    assert not find_overlap(division.train, [*division.choosing, *division.reporting]).shared["recording"]
    assert division.held_out_by == "recording"


def test_speakers_of_two_languages_do_not_leave_one_without_held_out_audio() -> None:
    cuts = cuts_of("fr", list("abc"), each=4) + cuts_of("nl", list("abc"), each=4)
    division = divide(cuts, 0.4, seed=1)
    check(division, cuts)
    for part in (division.train, division.choosing, division.reporting):
        assert {cut.supervisions[0].language for cut in part} == {"fr", "nl"}
