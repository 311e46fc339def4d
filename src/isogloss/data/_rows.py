"""One utterance as a manifest tells it, and the cut that it becomes once its recording's header was read."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

from isogloss.core.errors import DataError
from isogloss.core.languages import normalize_language
from isogloss.data._paths import is_path, printable
from isogloss.data.audio import AudioError, AudioHeader, inspect_audio
from isogloss.data.cut_lines import MAX_SECONDS, check_values

# How corpora call a column → how isogloss does
_COLUMNS = {
    "file_name": ("file_name", "filename", "file", "path", "audio", "audio_filepath", "audio_path", "wav"),
    "id": ("id", "utt_id", "utterance_id", "segment_id"),
    "language": ("language", "lang", "locale", "lang_id", "source_lang", "language_id"),
    "speaker": ("speaker", "speaker_id", "spk", "spk_id", "client_id"),
    "gender": ("gender", "sex", "spk_gender"),
    "text": ("text", "transcript", "transcription", "sentence"),
    "start": ("start", "offset"),
    "duration": ("duration",),
    "license": ("license", "licence"),
}
COLUMN_NAMES = {known: name for name, all_known in _COLUMNS.items() for known in all_known}
_SAID = ("language", "speaker", "gender", "text")  # what a supervision says
_GENDERS = {
    "male": "male", "m": "male", "man": "male", "male_masculine": "male", "masculine": "male",
    "female": "female", "f": "female", "w": "female", "woman": "female", "female_feminine": "female", "feminine": "female",
}  # fmt: skip


def misspelled_columns(cuts: Iterable[MonoCut]) -> list[tuple[str, str]]:
    """Return (name, sentence) for each column that nothing reads, whose name is near one that is read and that no cut has."""
    names: set[str] = set()
    said: set[str] = set()
    for cut in cuts:
        names.update(cut.custom or {})
        said.update(name for about in cut.supervisions for name in _SAID if getattr(about, name) is not None)
    readable = [known for known, name in COLUMN_NAMES.items() if name in _SAID and name not in said]
    return [
        (printable(name), f"is a column that nothing reads; did you mean `{near}`?")
        for name in sorted(names - COLUMN_NAMES.keys())
        for near in difflib.get_close_matches(name.casefold(), readable, 1, 0.8)
    ]


@dataclass(frozen=True)
class Rejected:
    """A recording or utterance that cannot be used: its id, where it was named, the short verdict, and the reason in words."""

    id: str
    place: str
    verdict: str
    reason: str

    @property
    def told(self) -> str:
        """Return place, id and reason; a line of a manifest that cannot be read has no id but its place."""
        return (
            f"{self.place}: {self.reason}"
            if self.id == os.path.basename(self.place)  # noqa: PTH119
            else f"{self.place}: {self.id}: {self.reason}"
        )


def rejected_line(error: DataError, place: str) -> Rejected:
    """Return a line of a manifest that cannot be used, from the fault that begins with its `place` (`file:line`)."""
    return Rejected(os.path.basename(place), place, "manifest", str(error).removeprefix(f"{place}: "))  # noqa: PTH119


@dataclass
class Row:
    """An utterance before its recording was looked at; `path` is absolute or relative to the working directory.

    `duration` None means: to the end. `num_samples` is what the manifest claims for the whole file, to be checked. `place`
    is `file:line`. `stem` is the default of `id`. `if_missing` is added to what is told of a file that is not there.
    """

    path: Path
    place: str
    stem: str
    id: str = ""
    start: float = 0.0
    duration: float | None = None
    num_samples: int | None = None
    text: str | None = None
    language: str | None = None
    speaker: str | None = None
    gender: str | None = None
    if_missing: str = ""
    custom: dict[str, Any] = field(default_factory=dict)


def row_of_fields(fields: Mapping[str, Any], root: Path, place: str) -> Row:
    """Return the row of a table's line, columns under any of their usual names; unknown columns go to `custom`.

    `translation` with `translation_language`, and `translation_xx`, become `custom["translations"]`.
    """
    known: dict[str, Any] = {}
    custom: dict[str, Any] = {}
    for key, value in fields.items():
        if value is None or value == "":
            continue
        name = COLUMN_NAMES.get(key.strip().casefold())
        if name is not None and name not in known:
            known[name] = value
        else:
            custom[key.strip()] = value
    # a path may hold bytes that are no text, and times are told by their names
    check_values([custom, *(known[name] for name in known.keys() - {"file_name", "start", "duration"})], place)
    file_name = _text(known, "file_name", place)
    if not file_name:
        raise DataError(f"{place}: has no `file_name`")
    path = path_below(root, file_name, place)
    if "license" in known:
        custom["license"] = _text(known, "license", place)
    _fold_translations(custom, place)
    return Row(
        path=path,
        place=place,
        stem=stem_of(file_name),
        id=_text(known, "id", place) or "",
        start=_seconds(known, "start", place) or 0.0,
        duration=_seconds(known, "duration", place),
        text=_text(known, "text", place),
        language=_text(known, "language", place),
        speaker=_text(known, "speaker", place),
        gender=gender_of(known.get("gender")),
        custom=custom,
    )


def path_below(root: Path, name: str, place: str) -> Path:
    """Return the path of a file that a manifest names; what is no plain path is a `DataError`, and nothing is opened."""
    if "\0" in name:
        raise DataError(f"{place}: the path {printable(name)} has a zero byte")
    if not is_path(name):
        raise DataError(f"{place}: the path {printable(name)} has half of a surrogate pair, which is no character")
    if name.startswith("pipe:") or name.rstrip().endswith("|"):
        raise DataError(
            f"{place}: {printable(name)!r} is a command; commands are never run: save its output as audio files first"
        )
    if "://" in name:
        raise DataError(f"{place}: {printable(name)!r} is an address; download the files first")
    path = Path(name)
    if path.is_absolute():
        return path
    if ".." in path.parts:
        raise DataError(f"{place}: the path {printable(name)!r} leaves the corpus folder; give an absolute path")
    return root / path


def stem_of(file_name: str) -> str:
    """Return the default id of a file: its path below the corpus without suffix, on one printable line without slashes."""
    path = Path(file_name)
    parts = path.with_suffix("").parts if not path.is_absolute() else (path.stem,)
    return printable("-".join(parts)).replace(" ", "_")


def language_tag(code: str | None, place: str) -> str | None:
    """Return the tag of a language code that stands at `place`, None for none."""
    if not code:
        return None
    try:
        return normalize_language(code).tag
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def gender_of(value: Any) -> str | None:
    """Return "male", "female" or None."""
    return _GENDERS.get(str(value).strip().casefold()) if value is not None else None


def name_rows(items: Iterable[Row | Rejected]) -> list[Row | Rejected]:
    """Give each row an id: its own, or its stem, which is lengthened where several share it; what was rejected stays in its place.

    Two rows that ask for the same id themselves are a `DataError`.
    """
    items = list(items)
    rows = [item for item in items if isinstance(item, Row)]
    sharing: dict[str, int] = {}
    for row in rows:
        if not row.id:
            sharing[row.stem] = sharing.get(row.stem, 0) + 1
    seen: dict[str, str] = {}
    for row in rows:
        given = bool(row.id)
        if not given:
            row.id = row.stem
            if sharing[row.stem] > 1:
                row.id += (
                    row.path.suffix.replace(".", "-")
                    if not (row.start or row.duration)
                    else f"-{round(row.start * 1000):08d}"
                )
        if row.id in seen:
            raise DataError(f"{row.place}: the id {row.id!r} was used before, at {seen[row.id]}; ids must be unique")
        seen[row.id] = row.place
    return items


def cuts_of_rows(rows: Iterable[Row | Rejected], *, source: str, language: str | None) -> Iterator[MonoCut | Rejected]:
    """Yield a cut for each row, or why there is none; each recording's header is read once.

    `source` and `language` are used where a row has none.
    """
    headers: dict[Path, AudioHeader | AudioError] = {}
    last: Path | None = None
    for row in rows:
        if isinstance(row, Rejected):
            yield row
            continue
        if row.path != last:
            # rows of one recording come together in every manifest; older ones need not be kept
            headers = {row.path: _header(row.path)}
            last = row.path
        header = headers[row.path]
        try:
            if isinstance(header, AudioError):
                raise header
            yield _cut(row, header, source, language)
        except AudioError as error:
            hint = row.if_missing if error.verdict == "missing" else ""
            yield Rejected(row.id, row.place, error.verdict, f"{printable(row.path)}: {error.reason}{hint}")
        except DataError as error:  # a language that is no code
            yield Rejected(row.id, row.place, "manifest", str(error).removeprefix(f"{row.place}: "))


def _cut(row: Row, header: AudioHeader, source: str, language: str | None) -> MonoCut:
    rate, name = header.sample_rate, printable(row.path)
    if header.num_samples is None:
        raise AudioError(
            name, "damaged", "does not tell how many samples it has; it was probably cut short, or never closed"
        )
    if not header.num_samples:
        raise AudioError(name, "empty", "has no samples")
    if row.num_samples is not None and abs(row.num_samples - header.num_samples) > 0.025 * rate:
        raise AudioError(
            name,
            "changed",
            f"has {header.num_samples} samples, but the manifest says {row.num_samples}; it was probably replaced",
        )
    remaining = header.duration - row.start
    length = remaining if row.duration is None else row.duration
    if remaining <= 0 or length > remaining + max(0.025, 0.011 * (row.start == 0)):
        end = row.start + length
        raise AudioError(name, "window", f"ends at {header.duration:.3f} s, but the utterance goes to {end:.3f} s")
    length = min(length, remaining)
    if round(length * rate) < 1:
        raise AudioError(name, "empty", "the utterance has no samples")
    recording = Recording(
        # one channel: where the file has more, their mean is taken
        id=row.id if not row.start and row.duration is None else stem_of(str(row.path)),
        sources=[AudioSource(type="file", channels=[0], source=os.fspath(row.path))],
        sampling_rate=rate,
        num_samples=header.num_samples,
        duration=header.duration,
    )
    tag = row.language or language
    supervision = SupervisionSegment(
        id=row.id,
        recording_id=recording.id,
        start=0.0,
        duration=length,
        channel=0,
        text=row.text,
        language=language_tag(tag, row.place),
        speaker=row.speaker,
        gender=row.gender,
    )
    return MonoCut(
        id=row.id,
        start=row.start,
        duration=length,
        channel=0,
        recording=recording,
        supervisions=[supervision],
        custom={"source": source, **row.custom},
    )


def _header(path: Path) -> AudioHeader | AudioError:
    try:
        return inspect_audio(path)
    except AudioError as error:
        return error


def _text(fields: Mapping[str, Any], key: str, place: str) -> str | None:
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{place}: `{key}` must be a text, but is a {type(value).__name__}")
    return str(value)


def _seconds(fields: Mapping[str, Any], key: str, place: str) -> float | None:
    value = fields.get(key)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= MAX_SECONDS or (key == "duration" and number == 0):
        bound = "above 0" if key == "duration" else "of at least 0"
        raise DataError(f"{place}: `{key}` must be a number {bound} in seconds, but is {str(value)[:50]!r}")
    return number


def _fold_translations(custom: dict[str, Any], place: str) -> None:
    translations: dict[str, Any] = {}
    language = custom.pop("translation_language", None)
    if "translation" in custom:
        key = str(language_tag(str(language), place)) if language else "und"
        translations[key] = str(custom.pop("translation"))
    for key in [key for key in custom if key.startswith("translation_")]:
        translations[str(language_tag(key.removeprefix("translation_"), place))] = str(custom.pop(key))
    given = custom.get("translations")
    if given is not None:
        if not isinstance(given, dict):
            raise DataError(f"{place}: `translations` must be an object of language and text")
        translations.update({str(language_tag(str(k), place)): str(v) for k, v in given.items()})
    if translations:
        custom["translations"] = translations
