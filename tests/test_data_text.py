"""Texts: found in files and corpora, dealt out in the same bins to any number of processes, and resumed exactly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from isogloss.core.errors import ConfigError, DataError
from isogloss.data.text_index import TextIndex
from isogloss.data.text_loader import MixedLoader, TextData, TextLoader
from small_corpus import cut_fields, write_cuts

TEXTS = [f"line {i} " + "xyz" * (i % 5) for i in range(40)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(TEXTS[:25]) + "\n\n   \n", encoding="utf-8")
    (folder / "b.txt").write_text("\r\n".join(TEXTS[25:]), encoding="utf-8")
    return folder


def loader(texts: Path, tmp_path: Path, **options: Any) -> TextLoader:
    settings = TextData(
        paths=(str(texts),), bytes_per_update=100, micro_batch_bytes=40, max_bytes=options.pop("max_bytes", 20)
    )
    index = TextIndex.open(settings.paths, tmp_path / "cache")
    return TextLoader(index, settings, **{"seed": 5, "bins_multiple_of": 4, **options})


def take(stream: Any, count: int) -> list[Any]:
    return [update for update, _ in zip(stream, range(count), strict=False)]


def contents(updates: list[Any]) -> list[Any]:
    return [[(b.ids, b.text, b.seeds_B.tolist()) for b in update.micro_batches] for update in updates]


def test_every_line_of_every_file_is_found_once(texts: Path, tmp_path: Path) -> None:
    index = TextIndex.open([str(texts)], tmp_path / "cache")
    assert list(index.lines()) == [text.rstrip() for text in TEXTS]
    assert TextIndex.open([str(texts)], tmp_path / "cache").folder == index.folder
    (texts / "b.txt").write_text("another\n")
    assert len(TextIndex.open([str(texts)], tmp_path / "cache")) == 26


def test_lines_in_any_order_of_more_files_than_may_be_open_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.txt").write_text(f"a{number}\nb{number}\n")
    monkeypatch.setattr("isogloss.data.text_index._OPEN_FILES", 3)
    opened: list[Path] = []
    real = Path.open
    index = TextIndex.open([str(folder)], tmp_path / "cache")
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (opened.append(self), real(self, *a, **k))[1])
    assert list(index.lines()) == [f"{letter}{number}" for number in range(9) for letter in "ab"]
    assert len(opened) == 9, "a file is opened once, not once a line"
    assert [index.line(row) for row in (17, 0, 16, 1)] == ["b8", "a0", "a8", "b0"]
    again = copy.deepcopy(index)  # as a worker gets it
    assert again.line(3) == "b1"
    (folder / "4.txt").unlink()
    with pytest.raises(DataError, match=r"4\.txt: cannot be read any more"):
        again.line(8)


def test_a_corpus_gives_its_transcripts(tmp_path: Path) -> None:
    cuts = [cut_fields(f"u{i}", 1.0) for i in range(3)]
    cuts[1]["supervisions"][0]["text"] = "two\nlines"
    write_cuts(tmp_path / "cuts.jsonl", cuts)
    index = TextIndex.open([str(tmp_path)], tmp_path / "cache")
    assert list(index.lines()) == ["text of u0", "two lines", "text of u2"]


def test_faults_are_named(texts: Path, tmp_path: Path) -> None:
    (texts / "a.txt").write_bytes(b"good\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"a\.txt: the line at byte 5"):
        list(TextIndex.open([str(texts)], tmp_path / "cache").lines())
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match="hold no line"):
        TextIndex.open([str(tmp_path / "empty.txt")], tmp_path / "cache")


def test_an_epoch_has_every_text_once_and_the_next_another_order(texts: Path, tmp_path: Path) -> None:
    first, second = [], []
    for update in loader(texts, tmp_path, max_bytes=40):
        for batch in update.micro_batches:
            assert batch.seconds == 0
            (first if len(first) < 40 else second).extend(batch.ids)
        if len(second) >= 40:
            break
    # updates straddle the border, so only what is certain: all texts within the texts of an epoch and an update
    assert len(set(first[:40])) >= 34
    assert first[:40] != second[:40]


def test_processes_work_through_the_same_bins(texts: Path, tmp_path: Path) -> None:
    alone = contents(take(loader(texts, tmp_path), 5))
    ranks = [contents(take(loader(texts, tmp_path, rank=r, world_size=2), 5)) for r in range(2)]
    assert [[*a, *b] for a, b in zip(*ranks, strict=True)] == [[*u[0::2], *u[1::2]] for u in alone]


def test_resume_is_exact_and_other_data_is_refused(texts: Path, tmp_path: Path) -> None:
    updates = take(loader(texts, tmp_path), 9)
    for stop in (1, 4, 7):
        later = loader(texts, tmp_path)
        later.load_state(updates[stop - 1].state)
        assert contents(take(later, 9 - stop)) == contents(updates[stop:])
    with pytest.raises(DataError, match="seed"):
        loader(texts, tmp_path, seed=6).load_state(updates[0].state)
    with pytest.raises(DataError, match="damaged"):
        loader(texts, tmp_path).load_state({})


def test_long_texts_give_windows_that_change_with_the_epoch(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(chr(ord("a") + i % 26) for i in range(200)) + "\n" + "é" * 100)
    updates = take(loader(path, tmp_path, bins_multiple_of=1), 20)
    windows = [t for u in updates for b in u.micro_batches for t in b.text]
    assert all(len(text.encode()) <= 20 for text in windows)
    assert all(text in path.read_text() for text in windows)
    assert len({text for text in windows if "é" not in text}) > 3


def test_loaders_are_mixed_and_each_goes_on(texts: Path, tmp_path: Path) -> None:
    def mixed() -> MixedLoader:
        return MixedLoader({"one": loader(texts, tmp_path), "two": loader(texts, tmp_path, seed=6)})

    updates = take(mixed(), 4)
    assert len(updates[0].micro_batches) == 8
    later = mixed()
    later.load_state(updates[1].state)
    assert contents(take(later, 2)) == contents(updates[2:])
    with pytest.raises(DataError, match="one and two"):
        later.load_state({"one": {}})


def test_bert_trains_on_text_alone_and_its_model_reads(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isogloss.hub.load import load_model
    from isogloss.training.loop import train
    from isogloss.training.recipe import load_recipe

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = [
        *(f'text.paths=["{texts}"]', "encoder.preset=text-tiny", "encoder.width=32", "encoder.ffn_width=32"),
        *("encoder.dropout=0.0", "encoder.attention_dropout=0.0", "text.bytes_per_update=400", "optim.lr=3e-3"),
        *("training.updates=60", "training.checkpoint_every=30", "training.log_every=1"),
    ]
    result = train(load_recipe("bert-small", settings), tmp_path / "run")
    loaded = load_model(result.model_dir)
    vocabulary = loaded.encoder.text.vocabulary  # type: ignore[attr-defined]
    assert {"l", "i", "n", "e", " ", "x", "y", "z"} < set(vocabulary.labels.symbols)
    import json

    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["event"] == "update"]
    assert losses[-1] < 0.7 * losses[0], losses
    with pytest.raises(ConfigError, match="hours of audio"):
        train(load_recipe("bert-small", [settings[0], "training.hours=1"]), tmp_path / "other")
