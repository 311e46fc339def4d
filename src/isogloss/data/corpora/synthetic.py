"""Synthesised speech in over 100 languages: exact alignments, parallel content, controlled speakers and channels.

espeak-ng speaks; the text is locale data, the same content in every language. For tests, controlled experiments and machines
without real speech: every cut is marked `custom["synthetic"]`, and whatever is measured on it says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.lookup import nearest
from isogloss.data._espeak import Spoken, speak, voice_of
from isogloss.data._espeak import languages as _espeak_languages
from isogloss.data.corpora._channel import CHANNELS, Channel, apply_channel
from isogloss.data.corpora._decode import SAMPLE_RATE, digest, write_flac
from isogloss.data.corpora._write import describe_cut, make_folder, tables, write_cuts, write_json

Progress = Callable[[str, int, int], None]
"""Told ("synthesize", recordings done, recordings in all)."""

_VARIANTS = ("f1", "m1", "f2", "m2", "f3", "m3", "f4", "m4", "f5", "m5", "m6", "m7", "m8")
_GENDERS = {"f": "female", "m": "male"}


@dataclass(frozen=True)
class Speaker:
    """A voice: one of espeak-ng's variants with a rate (words a minute) and a pitch (0 to 100) of its own, in a channel."""

    number: int
    name: str
    variant: str
    words_per_minute: int
    pitch: int
    channel_name: str
    channel: Channel


def available_languages() -> list[str]:
    """Return the languages and varieties that can be synthesised (tags in lower case)."""
    return sorted(_espeak_languages())


def synthesize(
    out: Path,
    *,
    languages: Sequence[str],
    voices: int = 4,
    utterances_per_voice: int = 50,
    seed: int = 0,
    channels: Sequence[str] | Mapping[str, Channel] = ("clean",),
    words_per_minute: tuple[int, int] = (130, 190),
    pitch: tuple[int, int] = (30, 70),
    items: tuple[int, int] = (3, 6),
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Synthesise a corpus and write `cuts.jsonl.gz`, `audio/` (16 kHz FLAC) and `report.json` to `out`; return the report.

    languages             BCP-47 tags; utterance n of voice v says the same in all of them (`custom["prompt"]`, `translations`)
    voices                speakers of each language, women and men in turn; each has its own rate and pitch within the ranges
    utterances_per_voice  per language; an utterance is a list of `items[0]` to `items[1]` names, 2 to 8 s
    channels              names of `CHANNELS` (clean, room, noisy, telephone) or channels by name; voice v is recorded in
                          channel v modulo their number, and the source is "espeak-ng/NAME"
    workers               processes; with more than one, a script that calls this needs the `if __name__ == "__main__"` guard

    The result is a function of the arguments except `workers`: the same samples and cuts, bit for bit. Raises `DataError`
    for a language that espeak-ng does not speak, `ConfigError` for a setting, `MissingExtraError` without the extra `phones`.
    """
    # Here and not above: torch stays out of the worker processes, which import this module.
    from isogloss.core.rng import derive_seed
    from isogloss.data.corpora._parallel_text import parallel_sentences

    speakers = _speakers(voices, _named_channels(channels), seed, words_per_minute, pitch)
    wanted = _checked_languages(languages)
    if utterances_per_voice < 1 or not 1 <= items[0] <= items[1]:
        raise ConfigError(
            f"`utterances_per_voice` must be at least 1 and `items` (lowest, highest) from 1, "
            f"but they are {utterances_per_voice} and {items}"
        )
    sentences = {
        speaker.number: parallel_sentences(wanted, utterances_per_voice, seed=seed, speaker=speaker.number, items=items)
        for speaker in speakers
    }
    jobs = [
        _Job(
            out=out,
            language=language,
            speaker=speaker,
            number=number,
            key=sentences[speaker.number][language][number].key,
            text=sentences[speaker.number][language][number].text,
            translations={
                other: sentences[speaker.number][other][number].text for other in wanted if other != language
            },
            seed=derive_seed(seed, "utterance", speaker.number, number, language),
        )
        for language in wanted
        for speaker in speakers
        for number in range(utterances_per_voice)
    ]
    make_folder(out)
    cuts = []
    for number, cut in enumerate(_run(jobs, workers), start=1):
        cuts.append(cut)
        if progress is not None:
            progress("synthesize", number, len(jobs))
    cuts.sort(key=lambda cut: str(cut["id"]))
    report = _report(cuts, wanted, speakers, seed)
    write_json(report, out / "report.json")
    write_cuts(cuts, out / "cuts.jsonl.gz")
    return report


@dataclass(frozen=True)
class _Job:
    out: Path
    language: str
    speaker: Speaker
    number: int
    key: str
    text: str
    translations: dict[str, str]
    seed: int


def _run(jobs: list[_Job], workers: int) -> Iterator[dict[str, Any]]:
    if workers <= 1:
        yield from map(_record, jobs)
        return
    # A fresh interpreter for each worker: forking a process that runs threads (torch's, say) may hang.
    with ProcessPoolExecutor(min(workers, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_record, jobs, chunksize=max(1, min(64, len(jobs) // (4 * workers))))


def _record(job: _Job) -> dict[str, Any]:
    """Speak one sentence, send it through the channel, write it, and describe it."""
    speaker, language = job.speaker, job.language
    rng = np.random.default_rng(job.seed)
    # Nobody speaks at one rate and one pitch all the time.
    spoken = speak(
        job.text,
        voice_of(language),
        variant=speaker.variant,
        words_per_minute=round(speaker.words_per_minute * float(rng.uniform(0.94, 1.06))),
        pitch=int(np.clip(speaker.pitch + rng.integers(-3, 4), 0, 99)),
    )
    audio_T = soxr.resample(spoken.samples_T.astype(np.float32) / 32768.0, spoken.sample_rate, SAMPLE_RATE)
    audio_T = apply_channel(audio_T, speaker.channel, rng)
    samples_T = np.round(np.clip(audio_T, -1.0, 1.0) * 32767.0).astype(np.int16)
    name = f"synthetic.{language}.{speaker.name.replace('/', '.')}.{job.number:05d}"
    path = f"audio/{language}/{speaker.name}/{name}.flac"
    write_flac(samples_T, job.out / path)
    supervision = {
        "text": job.text,
        "language": language,
        "speaker": f"espeak-ng/{speaker.name}",
        "gender": _GENDERS[speaker.variant[0]],
        "alignment": _alignment(spoken, len(samples_T) / SAMPLE_RATE),
    }
    custom = {
        "source": f"espeak-ng/{speaker.channel_name}",
        "license": "CC0-1.0",
        "speech_type": "synthesised",
        "synthetic": True,
        "alignment_kind": "synthetic",
        "prompt": job.key,
        "translations": job.translations or None,
        "sha256": digest(samples_T),
    }
    return describe_cut(name, path, len(samples_T), supervision, custom)


def _alignment(spoken: Spoken, duration: float) -> dict[str, list[list[Any]]]:
    """Return lhotse's alignment: the phones cover the recording from its start to its end."""
    alignment: dict[str, list[list[Any]]] = {}
    for kind, marks in (("phone", spoken.phones), ("word", spoken.words)):
        rows: list[list[Any]] = []
        for mark in marks:
            start = round(mark.start, 6)
            end = round(min(mark.start + mark.duration, duration), 6)
            if end > start:
                rows.append([mark.label, start, round(end - start, 6), None])
        alignment[kind] = rows
    if alignment["phone"]:
        last = alignment["phone"][-1]
        last[2] = round(duration - last[1], 6)
    return alignment


def _speakers(
    count: int,
    channels: list[tuple[str, Channel]],
    seed: int,
    words_per_minute: tuple[int, int],
    pitch: tuple[int, int],
) -> list[Speaker]:
    from isogloss.core.rng import derive_seed

    if count < 1:
        raise ConfigError(f"`voices` must be at least 1, but is {count}")
    if not 80 <= words_per_minute[0] <= words_per_minute[1] <= 400:
        raise ConfigError(f"`words_per_minute` must be (lowest, highest) within 80 to 400, but is {words_per_minute}")
    if not 0 <= pitch[0] <= pitch[1] <= 99:
        raise ConfigError(f"`pitch` must be (lowest, highest) within 0 to 99, but is {pitch}")
    speakers = []
    for number in range(count):
        rng = np.random.default_rng(derive_seed(seed, "speaker", number))
        variant = _VARIANTS[number % len(_VARIANTS)]
        round_ = number // len(_VARIANTS)
        channel_name, channel = channels[number % len(channels)]
        speakers.append(
            Speaker(
                number=number,
                name=variant if round_ == 0 else f"{variant}-{round_ + 1}",
                variant=variant,
                words_per_minute=int(rng.integers(words_per_minute[0], words_per_minute[1] + 1)),
                pitch=int(rng.integers(pitch[0], pitch[1] + 1)),
                channel_name=channel_name,
                channel=channel,
            )
        )
    return speakers


def _named_channels(channels: Sequence[str] | Mapping[str, Channel]) -> list[tuple[str, Channel]]:
    if isinstance(channels, Mapping):
        named = list(channels.items())
    else:
        for name in channels:
            if name not in CHANNELS:
                raise ConfigError(f"there is no channel `{name}`; {nearest(name, sorted(CHANNELS))}")
        named = [(name, CHANNELS[name]) for name in channels]
    if not named:
        raise ConfigError(f"`channels` must name at least one channel; known are {', '.join(sorted(CHANNELS))}")
    return named


def _checked_languages(languages: Iterable[str]) -> list[str]:
    from isogloss.core.languages import normalize_language

    tags = list(dict.fromkeys(normalize_language(language).tag for language in languages))
    if not tags:
        raise DataError(
            f"`languages` must name at least one language, for instance {', '.join(available_languages()[:8])}"
        )
    for tag in tags:
        voice_of(tag)
    return tags


def _report(cuts: list[dict[str, Any]], languages: list[str], speakers: list[Speaker], seed: int) -> dict[str, Any]:
    return {
        "corpus": "synthetic",
        "synthetic": True,
        "seed": seed,
        "languages": languages,
        "speakers": {
            speaker.name: {
                "variant": speaker.variant,
                "words_per_minute": speaker.words_per_minute,
                "pitch": speaker.pitch,
                "channel": speaker.channel_name,
            }
            for speaker in speakers
        },
        "input": len(cuts),
        "used": len(cuts),
        "dropped": 0,
        **tables(cuts),
    }
