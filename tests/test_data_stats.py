"""The corpus table, and totals that do not add up: those of LeBenchmark's 7K set."""

from __future__ import annotations

import csv
import io
import json

import pytest

from data_helpers import make_cut
from isogloss.core.errors import DataError
from isogloss.data.stats import CorpusRow, add_up, check_totals, corpus_stats, format_duration


def _cuts() -> list:  # type: ignore[type-arg]
    fields = {"source": "radio", "license": "CC-BY-4.0", "speech_type": "broadcast"}
    return [
        make_cut("a", seconds=2.0, language="fr", speaker="1", gender="female", **fields),
        make_cut("b", seconds=4.0, language="fr", speaker="1", gender="female", **fields),
        make_cut("c", seconds=3.0, language="fr", speaker="2", gender="male", **fields),
        make_cut("d", seconds=1.0, language="fr", **fields),
        make_cut("e", seconds=7.0, language="sw", speaker="2", **fields),
        make_cut("f", seconds=3600.0, source="village", synthetic=True),
    ]


def test_rows_and_total_by_hand() -> None:
    stats = corpus_stats(_cuts())
    french, swahili, village = stats.rows
    assert french.utterances == {"male": 1, "female": 2, "unknown": 1}
    assert french.seconds == {"male": 3.0, "female": 6.0, "unknown": 1.0}
    assert (french.num_speakers, french.num_unknown_speakers, french.mean_seconds) == (2, 1, 2.5)
    assert (french.license, french.speech_type) == ("CC-BY-4.0", "broadcast")
    assert (swahili.language, village.language, village.num_speakers) == ("sw", "und", None)
    assert (stats.total.num_utterances, stats.total.total_seconds) == (6, 3617.0)
    assert stats.total.num_speakers == 2, "a speaker of two languages of a source is one person"
    assert village.synthetic
    check_totals(stats.rows, num_utterances=6, seconds=3617.0, tolerance_seconds=0)


def test_all_forms_of_the_table_say_the_same() -> None:
    stats = corpus_stats(_cuts())
    rows = list(csv.DictReader(io.StringIO(stats.to_csv())))
    assert sum(int(row["utterances"]) for row in rows) == stats.total.num_utterances
    assert sum(float(row["hours"]) for row in rows) == pytest.approx(stats.total.total_seconds / 3600, abs=3e-4)
    assert json.loads(stats.to_json())["total"]["utterances"] == stats.total.utterances
    markdown = stats.to_markdown()
    assert "| radio | fr French | CC-BY-4.0 | 4 | 1 | 2 | 1 | 0:00:10 |" in markdown
    assert "| village (synthetic) | und undetermined | not told |" in markdown
    assert "| **total** | **3 languages** |" in markdown
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=80).print(stats.to_rich("my [corpus]"))
    assert "my [corpus]" in text.getvalue() or "my" in text.getvalue()
    assert "1:00:17" in text.getvalue()
    assert max(map(len, text.getvalue().splitlines())) <= 80


def _hours(hours: int, minutes: int) -> float:
    return 3600.0 * hours + 60.0 * minutes


def _row(source: str, counts: dict[str, tuple[int, float]]) -> CorpusRow:
    row = CorpusRow(source, "fr")
    for gender, (utterances, seconds) in counts.items():
        row.utterances[gender], row.seconds[gender] = utterances, seconds
    return row


def test_stated_totals_that_do_not_add_up_are_refused() -> None:
    """LeBenchmark states 7,739:22 h and 1,814,242 utterances for its 7K set, whose rows add up to 7,723:53 and 1,794,124.

    The rows are put together into two here.
    """
    rows = [
        _row("first", {"unknown": (1_119_000, _hours(2_933, 24))}),
        _row("second", {"male": (300_000, _hours(2_400, 0)), "female": (375_124, _hours(2_390, 29))}),
    ]
    total = add_up(rows)
    assert (total.num_utterances, total.total_seconds) == (1_794_124, _hours(7_723, 53))
    check_totals(rows, num_utterances=1_794_124, seconds=_hours(7_723, 53))
    check_totals(rows, seconds=_hours(7_723, 54))  # rounding of a table in minutes
    with pytest.raises(DataError) as caught:
        check_totals(rows, num_utterances=1_814_242, seconds=_hours(7_739, 22), what="LeBenchmark 7K")
    message = str(caught.value)
    assert message.startswith("the totals of LeBenchmark 7K do not add up: 1,814,242 utterances are stated")
    assert "+20,118" in message
    assert "+15:29:00" in message
    with pytest.raises(DataError, match="−10:00:00"):
        check_totals(rows, seconds=_hours(7_713, 53))


def test_durations() -> None:
    assert [format_duration(s) for s in (0, 59.6, 3599.5, 12_345_678)] == [
        "0:00:00",
        "0:01:00",
        "1:00:00",
        "3,429:21:18",
    ]
