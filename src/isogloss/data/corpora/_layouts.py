"""How the recordings lie in each Debian package: every reader lists clips, with what is known about them, and what to leave out."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from isogloss.core.config import Config, read_toml
from isogloss.core.errors import DataError
from isogloss.data.corpora._texts import language_tag, parse_dialogs, parse_prompts, parse_sounds, parse_stamp

AUDIO_SUFFIXES = (".g722", ".gsm", ".ogg", ".opus", ".wav")
_MAX_TEXT_BYTES = 1 << 24
_GENDERS = {"f": "female", "m": "male"}


class Source(Config):
    """One package of recordings: a row of `debian.toml`, where the fields are explained."""

    package: str
    texts: list[str]
    layout: str
    languages: list[str]
    references: list[str]
    license: str
    speech_type: str
    megabytes: float
    voice: str | None = None
    gender: str | None = None
    variety: str | None = None


class Demo(Config):
    """What the demo takes: sources in the order in which they are taken, and the languages kept of them."""

    languages: list[str]
    sources: list[str]


class Asterisk(Config):
    """Prompts that are tones or noises."""

    not_speech: list[str]


class Table(Config):
    """The whole of `debian.toml`."""

    demo: Demo
    asterisk: Asterisk
    source: list[Source]


@dataclass(frozen=True)
class Clip:
    """One recording and what its package says about it."""

    path: Path
    key: str  # unique within the package
    language: str  # BCP-47, without region
    speaker: str
    prompt: str
    variety: str | None = None  # BCP-47 with region or variant, where it is known
    gender: str | None = None
    text: str | None = None
    translations: dict[str, str] = field(default_factory=dict)


@dataclass
class Listing:
    """The clips of a package, the recordings left out with the reason, and remarks about what was not kept of a clip."""

    clips: list[Clip] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)  # file: reason
    remarks: dict[str, int] = field(default_factory=dict)  # remark: clips

    def remark(self, text: str) -> None:
        """Count one clip for a remark."""
        self.remarks[text] = self.remarks.get(text, 0) + 1


def load_table() -> Table:
    """Read `debian.toml`."""
    return Table.model_validate(read_toml(Path(__file__).with_name("debian.toml")))


def wanted(name: str) -> bool:
    """Tell whether a member of a package is needed: audio below /usr/share, or one of the text files."""
    return name.startswith("usr/share/") and (
        name.endswith((*AUDIO_SUFFIXES, ".lua", ".soundtheme", "/sounds.xml"))
        or ("/tuxpaint/stamps/" in name and name.endswith(".txt"))
        or ("/core-sounds-" in name and name.endswith(".txt.gz"))
    )


def list_clips(source: Source, roots: dict[str, Path], table: Table) -> Listing:
    """List the clips of a package that is unpacked, with its companion packages, at `roots`."""
    listing = Listing()
    _READERS[source.layout](source, roots, table, listing)
    return listing


def _asterisk(source: Source, roots: dict[str, Path], table: Table, listing: Listing) -> None:
    texts = _prompt_texts(roots)
    sounds = roots[source.package] / "usr/share/asterisk/sounds"
    for path in _audio(sounds):
        folder, *rest = path.relative_to(sounds).with_suffix("").parts
        name = "/".join(rest)
        language, variety, gender, voice = _asterisk_voice(folder, source)
        text = texts.get(language, {}).get(name.lower()) if language in source.references else None
        if name.startswith("silence/"):
            listing.dropped[name] = "silence"
        elif name in table.asterisk.not_speech or (text and text[0] in "([<"):
            listing.dropped[name] = "a tone or noise"
        else:
            if source.references and not text:
                listing.remark("no transcript in the package")
            listing.clips.append(
                Clip(
                    path=path,
                    key=name,
                    language=language,
                    variety=variety,
                    speaker=voice,
                    gender=gender,
                    text=text or None,
                    prompt=f"asterisk/{name}",
                    translations={
                        other: known[name.lower()]
                        for other, known in texts.items()
                        if other != language and known.get(name.lower(), "(")[0] not in "([<"
                    },
                )
            )


def _asterisk_voice(folder: str, source: Source) -> tuple[str, str | None, str | None, str]:
    """Read `fr_CA_f_June`: language, variety, gender and voice; a folder named by the language alone tells nothing else."""
    parts = folder.split("_")
    if len(parts) == 4:
        return parts[0], f"{parts[0]}-{parts[1]}", _GENDERS.get(parts[2]), parts[3]
    return source.languages[0], source.variety, source.gender, source.voice or source.languages[0]


def _prompt_texts(roots: dict[str, Path]) -> dict[str, dict[str, str]]:
    """Return {language: {prompt in lower case: text}}: the lists and the files differ in case here and there."""
    texts = {}
    for root in roots.values():
        for path in sorted(root.glob("usr/share/doc/*/core-sounds-*.txt.gz")):
            language = path.name.removeprefix("core-sounds-").removesuffix(".txt.gz")
            prompts = parse_prompts(_read_text(path))
            texts[language] = {name.lower(): text for name, text in prompts.items() if text}
    return texts


def _fillets(source: Source, roots: dict[str, Path], table: Table, listing: Listing) -> None:
    lines: dict[str, dict[str, dict[str, tuple[str, str]]]] = {}  # level → line → language → (font, text)
    scripts = roots[source.texts[0]] / "usr/share/games/fillets-ng/script"
    for path in sorted(scripts.glob("*/*dialogs_*.lua")):
        language = language_tag(path.stem.rpartition("dialogs_")[2])
        level = lines.setdefault(path.parent.name, {})
        for line in parse_dialogs(_read_text(path)):
            known = level.setdefault(line.name, {})
            # The English script has the originals alone; the other scripts repeat them.
            known.setdefault("en", (line.font, line.original))
            if line.text:
                known[language] = (line.font, line.text)
    sounds = roots[source.package] / "usr/share/games/fillets-ng/sound"
    for path in _audio(sounds):
        folders = path.relative_to(sounds).parent.parts  # level and language, or share, kind and language
        level_name, language = folders[0], folders[-1]
        known = lines.get(level_name, {}).get(path.stem, {})
        font, text = known.get(language, ("", ""))
        name = f"{level_name}/{path.stem}"
        if not font or not any(letter.isalpha() for letter in text):
            listing.dropped[name] = "no words in the script" if known else "not in the script"
            continue
        listing.clips.append(
            Clip(
                path=path,
                key=name,
                language=language,
                speaker=font.removeprefix("font_"),
                text=text,
                prompt=f"fillets/{name}",
                translations={other: item[1] for other, item in known.items() if other != language and item[1]},
            )
        )


def _tuxpaint(source: Source, roots: dict[str, Path], table: Table, listing: Listing) -> None:
    stamps = roots[source.package] / "usr/share/tuxpaint/stamps"
    for path in _audio(stamps):
        # `lion.ogg` is the lion's voice; `lion_desc.ogg` and `lion_desc_fr.ogg` are people.
        picture, sign, rest = path.name.partition("_desc")
        name = str(PurePosixPath(*path.relative_to(stamps).parent.parts, picture))
        if not sign:
            listing.dropped[str(path.relative_to(stamps))] = "a sound of the picture, not a description"
            continue
        tag = language_tag(rest.split(".")[0].removeprefix("_") or "en")
        language = tag.split("-")[0]
        described = path.parent / f"{picture}.txt"
        texts = parse_stamp(_read_text(described)) if described.is_file() else {}
        translations = {language_tag(locale): text for locale, text in texts.items()}
        text = translations.pop(tag, None)
        if text and language not in source.references:
            text = None
            listing.remark(f"text in {language} left out: edited after the recording, or never checked")
        listing.clips.append(
            Clip(
                path=path,
                key=f"{tag}/{name}",
                language=language,
                variety=tag if tag != language else None,
                speaker=tag,
                text=text,
                prompt=f"tuxpaint/{name}",
                translations=translations,
            )
        )


def _klettres(source: Source, roots: dict[str, Path], table: Table, listing: Listing) -> None:
    sounds = roots[source.package] / "usr/share/klettres"
    for path, tag, name in _themed(sounds, sorted(sounds.glob("*/sounds.xml")), listing):
        language = tag.split("-")[0]
        listing.clips.append(
            Clip(
                path=path,
                key="/".join(path.relative_to(sounds).with_suffix("").parts),
                language=language,
                variety=tag if tag != language else None,
                speaker=tag,
                # A letter is not the same content in another language: the key holds the language.
                prompt=f"klettres/{tag}/{name}",
            )
        )


def _ktuberling(source: Source, roots: dict[str, Path], table: Table, listing: Listing) -> None:
    sounds = roots[source.package] / "usr/share/ktuberling/sounds"
    for path, tag, name in _themed(sounds, sorted(sounds.glob("*.soundtheme")), listing):
        language = tag.split("-")[0]
        listing.clips.append(
            Clip(
                path=path,
                key="/".join(path.relative_to(sounds).with_suffix("").parts),
                language=language,
                variety=tag if tag != language else None,
                speaker=tag,
                prompt=f"ktuberling/{name}",
            )
        )


def _themed(sounds: Path, themes: list[Path], listing: Listing) -> Iterator[tuple[Path, str, str]]:
    """Yield (file, language tag of its folder, item) for each audio file that a theme names; the others are left out."""
    names: dict[str, str] = {}
    for theme in themes:
        for file, name in parse_sounds(_read_text(theme)).items():
            names.setdefault(file, name)
    for path in _audio(sounds):
        file = path.relative_to(sounds).as_posix()
        if file in names:
            yield path, language_tag(file.split("/")[0]), names[file]
        else:
            listing.dropped[file] = "not named in the package's list of sounds"


def _audio(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in AUDIO_SUFFIXES and path.is_file())


def _read_text(path: Path) -> str:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                data = stream.read(_MAX_TEXT_BYTES + 1)
        else:
            with path.open("rb") as stream:
                data = stream.read(_MAX_TEXT_BYTES + 1)
    except (OSError, EOFError) as error:
        raise DataError(f"{path.name}: cannot be read: {error}; the package is probably damaged, delete it") from None
    if len(data) > _MAX_TEXT_BYTES:
        raise DataError(f"{path.name}: larger than {_MAX_TEXT_BYTES} bytes; this is not a transcript")
    return data.decode("utf-8", errors="replace")


_Reader = Callable[[Source, dict[str, Path], Table, Listing], None]
_READERS: dict[str, _Reader] = {
    "asterisk": _asterisk,
    "fillets": _fillets,
    "tuxpaint": _tuxpaint,
    "klettres": _klettres,
    "ktuberling": _ktuberling,
}
