"""Names that are nearly right are told, and numbers of things are said as people say them."""

from __future__ import annotations

import pytest

from isogloss.core.errors import ConfigError
from isogloss.core.lookup import find_module, nearest
from isogloss.core.wording import counted

SYSTEMS = ["modified CPC", "wav2vec 2.0", "HuBERT, one iteration", "HuBERT with intermediate losses", "WavLM"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("wavlm", "did you mean `WavLM`?"),
        ("Wav2Vec 2", "did you mean `wav2vec 2.0`?"),
        ("hubrt", "did you mean `HuBERT, one iteration` or `HuBERT with intermediate losses`?"),
        (
            "zebra",
            "known are `modified CPC`, `wav2vec 2.0`, `HuBERT, one iteration`, `HuBERT with intermediate losses`, WavLM",
        ),
    ],
)
def test_the_nearest_name(name: str, told: str) -> None:
    assert nearest(name, SYSTEMS) == told


@pytest.mark.parametrize(
    ("package", "kind"),
    [("data.corpora", "corpus"), ("tasks", "task"), ("objectives", "objective"), ("hub.families", "family")],
)
def test_what_is_not_there_is_one_thing(package: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no {kind} `nothing`"):
        find_module(f"isogloss.{package}", "nothing")


def test_counted() -> None:
    assert [counted(n, "package") for n in (0, 1, 2000)] == ["0 packages", "1 package", "2,000 packages"]
    assert counted(3, "corpus", "corpora") == "3 corpora"
