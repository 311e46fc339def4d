"""Human recordings that Debian ships: about 9.5 hours in more than 20 languages, fetched by apt without root.

Each recording keeps its package (`custom["source"]`), licence, transcript and translations where they can be trusted, and
a key of its content (`custom["prompt"]`) that is the same in every language. `debian.toml` is the table of packages.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isogloss.core.errors import DataError
from isogloss.core.lookup import nearest
from isogloss.core.wording import counted
from isogloss.data.corpora._apt import Apt, Package
from isogloss.data.corpora._deb import unpack
from isogloss.data.corpora._decode import SAMPLE_RATE, UnusableRecordingError, decode, digest, write_flac
from isogloss.data.corpora._layouts import Clip, Source, list_clips, load_table, wanted
from isogloss.data.corpora._write import describe_cut, make_folder, tables, write_cuts, write_json

Progress = Callable[[str, int, int], None]
"""Told (stage, done, total): bytes while the stage is "download", packages while "unpack", recordings while "decode"."""

# Nobody speaks faster; such a text was extended after the recording (the longest such: 181 characters in 0.8 s).
_MAX_CHARACTERS_PER_SECOND = 30.0
_TOO_LONG = "text left out: longer than can be said in the time"


@dataclass(frozen=True)
class Plan:
    """What would be fetched: sources with all the packages that they need."""

    sources: list[Source]
    languages: list[str]
    packages: list[Package]
    missing: list[str]  # wanted, but in no archive that apt knows
    left_out: list[str]  # would have gone beyond the limit on megabytes

    @property
    def megabytes(self) -> float:
        """Size of all packages, 10⁶ bytes."""
        return sum(package.megabytes for package in self.packages)

    @property
    def download_megabytes(self) -> float:
        """Size of the packages that are not in the cache yet, 10⁶ bytes."""
        return sum(package.megabytes for package in self.packages if not package.is_cached)

    def describe(self) -> str:
        """Say in one sentence what will be fetched."""
        if self.download_megabytes == 0:
            return (
                f"{counted(len(self.packages), 'Debian package')} ({self.megabytes:.0f} MB), all in the cache already"
            )
        return (
            f"{counted(len(self.packages), 'Debian package')}, {self.megabytes:.0f} MB, "
            f"of which {self.download_megabytes:.0f} MB are to be downloaded"
        )


def source_names() -> list[str]:
    """Return the packages of recordings that isogloss knows."""
    return [source.package for source in load_table().source]


def plan(
    languages: Sequence[str] | None = None,
    *,
    packages: Sequence[str] | None = None,
    max_megabytes: float | None = None,
    apt: Apt | None = None,
) -> Plan:
    """Return what would be fetched for some languages (BCP-47, region ignored) and packages; by default all.

    Sources are taken in the order of `packages`, or of `debian.toml`, while they fit below `max_megabytes` (of packages,
    cached ones included). Raises `DataError` for an unknown name and where apt has none of the packages.
    """
    sources, chosen = _choose(languages, packages)
    names = list(dict.fromkeys(name for source in sources for name in (source.package, *source.texts)))
    available = (apt or Apt()).find(names)
    taken: dict[str, Package] = {}
    kept: list[Source] = []
    missing: list[str] = []
    left_out: list[str] = []
    for source in sources:
        absent = [name for name in (source.package, *source.texts) if name not in available]
        missing += [name for name in absent if name not in missing]
        # Without its scripts the dialogue has no text at all; a prompt list of another language only costs translations.
        if source.package in absent or (source.texts and source.texts[0] in absent):
            continue
        needed = {name: available[name] for name in (source.package, *source.texts) if name in available}
        total = sum(package.megabytes for package in {**taken, **needed}.values())
        if max_megabytes is not None and total > max_megabytes:
            left_out.append(source.package)
            continue
        taken.update(needed)
        kept.append(source)
    if not kept:
        what = f"no package fits into {max_megabytes:g} MB" if left_out else "apt knows none of the packages"
        raise DataError(
            f"nothing to prepare: {what}; try another limit, other languages, or `isogloss corpus synthesize`"
        )
    return Plan(kept, chosen, list(taken.values()), missing, left_out)


def demo_selection(max_megabytes: float = 250.0, *, apt: Apt | None = None) -> Plan:
    """Return the plan of the demo: five languages of telephone prompts, and a second independent source for four of them.

    So language identification can be trained on one source and tested on another (French, Spanish, Italian, Russian).
    """
    demo = load_table().demo
    return plan(demo.languages, packages=demo.sources, max_megabytes=max_megabytes, apt=apt)


def prepare(
    out: Path,
    *,
    languages: Sequence[str] | None = None,
    packages: Sequence[str] | None = None,
    max_megabytes: float | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    apt: Apt | None = None,
) -> dict[str, Any]:
    """Fetch, decode and describe Debian's recordings; write `cuts.jsonl.gz`, `audio/` (16 kHz FLAC) and `report.json` to `out`.

    Arguments are those of `plan`; `workers` counts decoding threads (default: the processors). Returns the report: used and
    dropped recordings with reasons (used + dropped = input), hours per language and source, remarks. Raises `DataError`.
    """
    apt = apt or Apt()
    planned = plan(languages, packages=packages, max_megabytes=max_megabytes, apt=apt)
    tell = progress or (lambda stage, done, total: None)
    archives = _fetch(planned, apt, tell)
    make_folder(out)
    workers = workers or _processors()
    with tempfile.TemporaryDirectory(dir=out, prefix=".unpacked-") as folder:
        roots = _unpack(archives, Path(folder), workers, tell)
        corpus = _Corpus(out, planned)
        listed: list[tuple[Source, Clip]] = []
        for source in planned.sources:
            listing = list_clips(source, {name: roots[name] for name in _needs(source) if name in roots}, load_table())
            clips = [clip for clip in listing.clips if clip.language in planned.languages]
            skipped = len(listing.clips) - len(clips)
            corpus.add_listing(source, listing.dropped, listing.remarks, skipped)
            listed += [(source, clip) for clip in clips]
        _decode_all(listed, corpus, workers, tell)
    return corpus.write()


class _Corpus:
    """Collects what is used and what is dropped, and writes both."""

    def __init__(self, out: Path, planned: Plan) -> None:
        self.out = out
        self.planned = planned
        self.versions = {package.name: package.version for package in planned.packages}
        self.cuts: list[dict[str, Any]] = []
        self.dropped: list[dict[str, str]] = []
        self.remarks: dict[str, dict[str, int]] = {}
        self.other_languages = 0
        self._first_with: dict[str, str] = {}

    def add_listing(self, source: Source, dropped: dict[str, str], remarks: dict[str, int], skipped: int) -> None:
        """Note what a package's listing left out."""
        self.dropped += [{"source": source.package, "name": name, "reason": why} for name, why in dropped.items()]
        self.other_languages += skipped
        if remarks:
            self.remarks[source.package] = remarks

    def drop(self, source: Source, clip: Clip, reason: str) -> None:
        """Leave a recording out."""
        self.dropped.append({"source": source.package, "name": clip.key, "reason": reason})

    def first_with(self, sha256: str, name: str) -> str:
        """Return the name of the recording that first had these samples: the given one if they are new."""
        return self._first_with.setdefault(sha256, name)

    def add(self, source: Source, clip: Clip, name: str, num_samples: int, rate: int, sha256: str) -> None:
        """Use a recording."""
        text = clip.text
        if text is not None and len(text) > _MAX_CHARACTERS_PER_SECOND * num_samples / SAMPLE_RATE:
            text = None
            remarks = self.remarks.setdefault(source.package, {})
            remarks[_TOO_LONG] = remarks.get(_TOO_LONG, 0) + 1
        supervision = {
            "text": text,
            "language": clip.language,
            "speaker": f"{source.package}/{clip.speaker}",
            "gender": clip.gender,
        }
        custom = {
            "source": source.package,
            "package_version": self.versions[source.package],
            "license": source.license,
            "speech_type": source.speech_type,
            "prompt": clip.prompt,
            "variety": clip.variety,
            "translations": clip.translations or None,
            "original_sampling_rate": rate,
            "sha256": sha256,
        }
        self.cuts.append(describe_cut(name, _audio_path(source, name), num_samples, supervision, custom))

    def write(self) -> dict[str, Any]:
        """Write the cuts and the report, and return the report."""
        if not self.cuts:
            raise DataError("no recording is left; see the reasons: " + "; ".join(sorted(self._reasons())))
        report = {
            "corpus": "debian",
            "packages": [
                {"name": package.name, "version": package.version, "megabytes": round(package.megabytes, 2)}
                for package in self.planned.packages
            ],
            "missing_packages": self.planned.missing,
            "left_out_packages": self.planned.left_out,
            "licenses": {source.package: source.license for source in self.planned.sources},
            "languages": self.planned.languages,
            "input": len(self.cuts) + len(self.dropped),
            "used": len(self.cuts),
            "dropped": len(self.dropped),
            "dropped_by_reason": self._reasons(),
            "in_other_languages": self.other_languages,
            **tables(self.cuts),
            "remarks": self.remarks,
            "dropped_recordings": self.dropped,
        }
        write_json(report, self.out / "report.json")
        write_cuts(self.cuts, self.out / "cuts.jsonl.gz")
        return report

    def _reasons(self) -> dict[str, int]:
        reasons: dict[str, int] = {}
        for item in self.dropped:
            # A duplicate's reason names the other recording.
            reason = item["reason"].split(" of ")[0] if item["reason"].startswith("duplicate of ") else item["reason"]
            reasons[reason] = reasons.get(reason, 0) + 1
        return dict(sorted(reasons.items()))


def _choose(languages: Sequence[str] | None, packages: Sequence[str] | None) -> tuple[list[Source], list[str]]:
    table = {source.package: source for source in load_table().source}
    for name in packages or ():
        if name not in table:
            raise DataError(f"there is no Debian package of recordings `{name}`; {nearest(name, sorted(table))}")
    sources = [table[name] for name in dict.fromkeys(packages)] if packages else list(table.values())
    offered = sorted({language for source in sources for language in source.languages})
    if languages is None:
        return sources, offered
    chosen = list(dict.fromkeys(language.replace("_", "-").split("-")[0].lower() for language in languages))
    for language in chosen:
        if language not in offered:
            raise DataError(f"no chosen Debian package has recordings in `{language}`; {', '.join(offered)} are there")
    return [source for source in sources if set(source.languages) & set(chosen)], chosen


def _fetch(planned: Plan, apt: Apt, tell: Progress) -> dict[str, Path]:
    total = sum(package.size_bytes for package in planned.packages if not package.is_cached)
    paths = apt.fetch(planned.packages, lambda done: tell("download", done, total))
    if total:
        tell("download", total, total)
    return paths


def _unpack(archives: dict[str, Path], folder: Path, workers: int, tell: Progress) -> dict[str, Path]:
    # dpkg-deb decompresses in a process of its own, so threads are enough to keep the processors busy.
    with ThreadPoolExecutor(workers) as pool:
        started = {name: pool.submit(unpack, path, folder / name, wanted) for name, path in archives.items()}
        for number, future in enumerate(started.values(), start=1):
            future.result()
            tell("unpack", number, len(started))
    return {name: folder / name for name in archives}


def _decode_all(listed: list[tuple[Source, Clip]], corpus: _Corpus, workers: int, tell: Progress) -> None:
    """Decode and write in threads; look at the results in order, so that of two equal recordings the same one is always kept."""
    # A duplicate that has a text is kept rather than one without.
    ordered = sorted(listed, key=lambda item: (item[1].text is None, item[0].package, item[1].key))
    names: set[str] = set()
    named = [(source, clip, _name(source, clip, names)) for source, clip in ordered]
    with ThreadPoolExecutor(workers) as pool:
        converted = [
            pool.submit(_convert, clip.path, corpus.out / _audio_path(source, name)) for source, clip, name in named
        ]
        try:
            for number, ((source, clip, name), future) in enumerate(zip(named, converted, strict=True), start=1):
                _take(future, source, clip, name, corpus)
                tell("decode", number, len(named))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    corpus.cuts.sort(key=lambda cut: cut["id"])


def _take(future: Future[tuple[int, int, str]], source: Source, clip: Clip, name: str, corpus: _Corpus) -> None:
    try:
        num_samples, rate, sha256 = future.result()
    except UnusableRecordingError as error:
        corpus.drop(source, clip, str(error))
        return
    first = corpus.first_with(sha256, name)
    if first == name:
        corpus.add(source, clip, name, num_samples, rate, sha256)
    else:
        corpus.drop(source, clip, f"duplicate of {first}")
        (corpus.out / _audio_path(source, name)).unlink()


def _convert(recording: Path, flac: Path) -> tuple[int, int, str]:
    """Decode one recording and write it; return (samples, original rate, hash of the samples)."""
    samples_T, rate = decode(recording)
    write_flac(samples_T, flac)
    return len(samples_T), rate, digest(samples_T)


def _name(source: Source, clip: Clip, taken: set[str]) -> str:
    """Return an id that is also a file name: package and key, with nothing but letters, digits, points and dashes."""
    base = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{source.package}.{clip.key.replace('/', '.')}")
    name = base
    number = 2
    while name in taken:
        name = f"{base}-{number}"
        number += 1
    taken.add(name)
    return name


def _audio_path(source: Source, name: str) -> str:
    return f"audio/{source.package}/{name}.flac"


def _needs(source: Source) -> list[str]:
    return [source.package, *source.texts]


def _processors() -> int:
    return max(1, min(16, os.cpu_count() or 1))
