"""Open a corpus in whatever form it comes, as Lhotse cuts; write one that stays good wherever its folder goes.

The form is found by looking: a prepared isogloss corpus, a Lhotse Shar folder or cuts file, a Kaldi directory, a folder
with `metadata.csv` or `.jsonl`, a fairseq `.tsv`, a NeMo manifest, a table with a header, or a bare folder of audio with a
subfolder per language. `phones.ctm` and `words.ctm` beside any but the first two are attached. Files that cannot be read
become `Rejected` in `iterate_corpus`, and an error in `open_corpus`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from lhotse import CutSet, MonoCut

from isogloss.core.errors import DataError
from isogloss.core.languages import known_language
from isogloss.data._paths import PathLike, printable
from isogloss.data._rows import Rejected, Row, cuts_of_rows, language_tag, name_rows, rejected_line
from isogloss.data._tables import (
    first_line,
    first_object,
    json_lines,
    rows_of_fairseq,
    rows_of_folder,
    rows_of_json_lines,
    rows_of_kaldi,
    rows_of_table,
)
from isogloss.data._write import write_corpus, write_fairseq
from isogloss.data.alignments import alignments_beside
from isogloss.data.cut_lines import parse_line, to_cut
from isogloss.data.tar_members import is_shar, iterate_shards, read_member, shard_files

__all__ = ["Rejected", "form_of", "iterate_corpus", "open_corpus", "write_corpus", "write_fairseq"]

CUT_FILES = ("cuts.jsonl.gz", "cuts.jsonl")
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
NO_RECORDINGS = "{}: has no recordings; accepted are wav, flac, mp3, ogg and opus files and manifests of them"


def open_corpus(path: PathLike, *, language: str | None = None) -> CutSet:
    """Return the cuts of a corpus; `language` is that of utterances which say none, and no registry's is a `ConfigError`.

    A recording that cannot be read is a `DataError` that names the first and counts the rest: `isogloss corpus audit`
    leaves them out and keeps the others. A Shar folder is read as one iterates, its audio in memory.
    """
    path = Path(path)
    if form_of(path) == "shar":
        return CutSet(_ShardCuts(path, _tag(language)))
    good: list[MonoCut] = []
    bad: list[Rejected] = []
    for item in iterate_corpus(path, language=language):
        if isinstance(item, Rejected):
            bad.append(item)
        else:
            good.append(item)
    if bad:
        first = bad[0]
        raise DataError(
            f"{first.told} ({len(bad)} of {len(good) + len(bad)} recordings cannot be used; "
            "`isogloss corpus audit` leaves them out and writes a corpus of the rest)"
        )
    if not good:
        raise DataError(NO_RECORDINGS.format(printable(path)))
    return CutSet(good)


def iterate_corpus(path: PathLike, *, language: str | None = None) -> Iterator[MonoCut | Rejected]:
    """Yield each utterance of a corpus as a cut, or why its recording or its line cannot be used.

    A line of JSON stands for itself, and so does a language that is no code, in any form but Shar. Another fault of a line puts
    those after it in doubt, and is a `DataError`; so are a file that cannot be read to its end, and an id that comes twice.
    """
    path = Path(path)
    form = form_of(path)
    tag = _tag(language)
    if form == "shar":
        yield from _ShardCuts(path, tag)
    elif form == "cuts":
        yield from _lhotse_cuts(_cuts_file(path), tag)
    else:
        source = path if path.is_dir() else path.parent
        alignments = alignments_beside(source)
        name = printable(source.resolve().name) or "corpus"
        for item in cuts_of_rows(name_rows(_rows(path, form)), source=name, language=tag):
            yield item if alignments is None or isinstance(item, Rejected) else alignments.attach(item)


def form_of(path: PathLike) -> str:
    """Return how a corpus is laid out: cuts, shar, kaldi, table, json lines, fairseq, folders (one corpus each), or folder."""
    path = Path(path)
    if path.is_dir():
        return _form_of_folder(path)
    if not path.exists():
        raise DataError(f"{printable(path)}: no such corpus; give a folder or a manifest")
    if not path.is_file():
        raise DataError(f"{printable(path)}: is neither a folder nor a regular file")
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".json")):
        found = first_object(path)
        if found is None:
            raise DataError(f"{printable(path)}:1: the manifest has no lines")
        return "cuts" if "recording" in found else "json lines"
    if name.endswith(".csv"):
        return "table"
    if name.endswith(".tsv"):
        return "table" if b"\t" in first_line(path)[1] else "fairseq"
    if name == "wav.scp":
        raise DataError(f"{printable(path)}: give the Kaldi directory, not one of its files")
    raise DataError(
        f"{printable(path)}: its kind is unknown; accepted are a folder, metadata.csv or .jsonl, a fairseq .tsv, a NeMo manifest, "
        "a Kaldi directory, and Lhotse cuts or Shar"
    )


def _form_of_folder(path: Path) -> str:
    if any((path / name).is_file() for name in CUT_FILES):
        return "cuts"
    if is_shar(path):
        return "shar"
    if (path / "wav.scp").is_file():
        return "kaldi"
    for name, form in zip(METADATA_FILES, ("table", "json lines"), strict=True):
        if (path / name).is_file():
            return form
    return "folder"


def _rows(path: Path, form: str) -> Iterable[Row | Rejected]:
    if form == "kaldi":
        return rows_of_kaldi(path)
    if form == "table":
        return rows_of_table(path / METADATA_FILES[0] if path.is_dir() else path)
    if form == "json lines":
        return rows_of_json_lines(path / METADATA_FILES[1] if path.is_dir() else path)
    if form == "fairseq":
        return rows_of_fairseq(path)
    return rows_of_folder(path)


def _cuts_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    return next(path / name for name in CUT_FILES if (path / name).is_file())


def _lhotse_cuts(path: Path, language: str | None) -> Iterator[MonoCut | Rejected]:
    seen: dict[str, str] = {}
    for place, line in json_lines(path):
        try:
            cut = _with_language(to_cut(parse_line(line, place), path.parent, place), language, place)
        except DataError as error:
            yield rejected_line(error, place)
            continue
        if cut.id in seen:
            raise DataError(f"{place}: the id {cut.id!r} was used before, at {seen[cut.id]}; ids must be unique")
        seen[cut.id] = place
        yield cut


class _ShardCuts:
    """The cuts of a Shar folder, each with its audio in memory while it is used."""

    def __init__(self, folder: Path, language: str | None) -> None:
        self._folder, self._language = folder, language

    def __iter__(self) -> Iterator[MonoCut]:
        archives = [tar for _, tar in shard_files(self._folder)]
        seen: set[str] = set()
        for place, line, member in iterate_shards(self._folder):
            cut = to_cut(parse_line(line, place), self._folder, place)
            if cut.id in seen:
                raise DataError(f"{place}: the id {cut.id!r} was used before; ids must be unique")
            seen.add(cut.id)
            audio = cut.recording.sources[0]
            audio.type = "memory"
            audio.source = read_member(archives[member.shard], member.offset, member.size, cut.id)
            yield _with_language(cut, self._language, place)


def _tag(language: str | None) -> str | None:
    return known_language(language).tag if language is not None else None


def _with_language(cut: MonoCut, language: str | None, place: str) -> MonoCut:
    for supervision in cut.supervisions:
        supervision.language = language_tag(supervision.language or language, place)
    return cut
