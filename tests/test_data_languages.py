"""Language codes in the spellings that corpora use."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.languages import known_language, language_of_folder, normalize_language


@pytest.mark.parametrize(
    ("code", "tag", "iso639_3"),
    [
        ("fr", "fr", "fra"),
        ("fra", "fr", "fra"),
        ("fre", "fr", "fra"),  # ISO 639-2/B
        ("eng_Latn", "en", "eng"),  # omniASR, NLLB: the script is the usual one
        ("cmn_Hans", "cmn-Hans", "cmn"),
        ("zh-HK", "zh-HK", "zho"),  # Common Voice
        ("nan-tw", "nan-TW", "nan"),
        ("rm-sursilv", "rm-sursilv", "roh"),
        ("iw", "he", "heb"),
        ("jw", "jv", "jav"),  # withdrawn
        ("en_US.UTF-8", "en-US", "eng"),
        ("ca_ES@valencia", "ca-ES", "cat"),
        ("French", "fr", "fra"),
        ("Central Kurdish", "ckb", "ckb"),
        ("mdw", "mdw", "mdw"),
        ("nst-tusom", "nst-tusom", "nst"),
        ("x-foo", "x-foo", ""),
        ("Our Village", "our-village", ""),
        ("und", "und", "und"),
    ],
)
def test_spellings(code: str, tag: str, iso639_3: str) -> None:
    language = normalize_language(code)
    assert (language.tag, language.iso639_3) == (tag, iso639_3)
    assert language.name
    assert normalize_language(tag) == language, "a normalised tag stays what it is"


def test_names() -> None:
    assert normalize_language("ckb").name == "Central Kurdish"
    assert normalize_language("zh-HK").name == "Chinese (HK)"


@pytest.mark.parametrize("code", ["", "  ", "??", "a\nb", "x" * 200])
def test_what_is_no_code(code: str) -> None:
    with pytest.raises(DataError, match="language code"):
        normalize_language(code)


def test_folders_named_after_languages_and_others() -> None:
    known = {name: language_of_folder(name) for name in ("ckb", "pl", "eng_Latn", "Polish", "nst-tusom")}
    assert all(known.values())
    # `wav` (Waka) and `dev` (Domung) are languages too, but not as folders
    assert not any(
        language_of_folder(name) for name in ("wav", "dev", "train", "clips", "audio", "spk001", "2019", "...")
    )


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=string.printable + "éß語", max_size=20))
def test_any_text_gives_a_usable_tag_or_a_data_error(code: str) -> None:
    try:
        tag = normalize_language(code).tag
    except DataError:
        return
    assert tag
    assert all(c in string.ascii_letters + string.digits + "-" for c in tag)
    assert normalize_language(tag).tag == tag


@pytest.mark.parametrize("code", ["fr", "mdw", "und", "French", "mis-x-klingon", "x-klingonish"])
def test_an_option_takes_what_registries_know_and_private_tags(code: str) -> None:
    assert known_language(code) == normalize_language(code)


def test_an_option_refuses_other_names_and_tells_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^`--language`: `mboshi` is no language .*; near it is `mdw` \(Mbosi\)"):
        known_language("mboshi")
    with pytest.raises(ConfigError, match=r"`zz9` is no language that a registry knows; give an ISO 639"):
        known_language("zz9")


@pytest.mark.parametrize("code", ["??", "", "中文", "a\nb", "x" * 200])
def test_an_option_that_is_no_code_at_all_is_told_like_one_that_nobody_knows(code: str) -> None:
    with pytest.raises(ConfigError, match=r"^`--language`: a language code must ") as caught:
        known_language(code)
    assert str(caught.value).isprintable()
