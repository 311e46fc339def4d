import pytest

from isogloss.data.corpora._texts import (
    clean,
    language_tag,
    parse_dialogs,
    parse_prompts,
    parse_sounds,
    parse_stamp,
)


def test_dialogs_with_comments_escapes_joined_strings_and_code():
    source = r"""
-- dialogId("old", "font_small", "gone") dialogStr("gone")
--[[ dialogId("older", "f", "x")
dialogStr("gone too") ]]
dialogLoad("script/" .. codename .. "/")
dialogId("a-1", 'font_big', "He said \"no\" -- twice.")
dialogStr("Er sagte „nein“,\n zweimal \233(.")
dialogId("b", "font_small",
    "one " .. "two")
dialogStr("eins " ..
    "zwei")
dialogId(name, "font_small", "computed")
dialogId("c", "font_small", "alone")
if x then print("dialogStr(") end
"""
    lines = parse_dialogs(source)
    assert [(line.name, line.font) for line in lines] == [("a-1", "font_big"), ("b", "font_small"), ("c", "font_small")]
    assert lines[0].original == 'He said "no" -- twice.'
    assert lines[0].text == "Er sagte „nein“, zweimal (."
    assert (lines[1].original, lines[1].text) == ("one two", "eins zwei")
    assert (lines[2].original, lines[2].text) == ("alone", "")


def test_dialogs_end_anywhere():
    whole = 'dialogId("a", "font_big", "x")\ndialogStr("y")'
    for end in range(len(whole)):
        assert len(parse_dialogs(whole[:end])) <= 1
    assert parse_dialogs('dialogStr("without a name")') == []


def test_prompts():
    text = (
        '\ufeff; Title: of the list\n\nhello: Hi: you.\ndigits/1: "one"\nempty:\na sentence: with blanks is no name\n'
    )
    assert parse_prompts(text) == {"hello": "Hi: you.", "digits/1": "one", "empty": ""}


def test_stamp():
    text = "A   cat.\nfr.utf8=Un chat = bon.\nde.utf8=\nnonsense\nes=no\n"
    assert parse_stamp(text) == {"en": "A cat.", "fr": "Un chat = bon."}
    assert parse_stamp("") == {}


def test_sounds_expand_no_entities_of_the_document():
    text = '<!DOCTYPE x [<!ENTITY big "aaaa">]><sound name="&big;" file="a.ogg"/><sound file="b.ogg" name="B &amp; C"/><sound name="x"/>'
    assert parse_sounds(text) == {"a.ogg": "&big;", "b.ogg": "B & C"}


@pytest.mark.parametrize(
    ("locale", "tag"),
    [("fr", "fr"), ("pt_BR", "pt-BR"), ("sr@latin", "sr-Latn"), ("ca@valencia", "ca-valencia"), ("zh_tw", "zh-TW")],
)
def test_language_tag(locale, tag):
    assert language_tag(locale) == tag


def test_clean_removes_only_quotation_marks_around_the_whole():
    assert clean(" “a \n b” ") == "a b"
    assert clean('"a" and "b"') == '"a" and "b"'
    assert clean('"') == '"'
