"""espeak-ng through ctypes: speech with the time of every phone, and phones of text.

The library keeps state from one call to the next (the phase of its oscillators, its random numbers), so the same sentence
never sounds quite the same twice. It is therefore loaded afresh for every sentence, which takes less than a millisecond and
makes the samples a function of the arguments alone.
"""

from __future__ import annotations

import _ctypes
import ctypes
import re
import threading
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isogloss.core.errors import DataError, MissingExtraError

SILENCE = "SIL"

_SYNCHRONOUS = 2
_PHONEME_EVENTS_IN_IPA = 0x1 | 0x2
_DO_NOT_EXIT = 0x8000
_UTF8 = 1
_RATE, _PITCH = 1, 3
_END, _WORD, _PHONE = 0, 1, 7
_PHONE_SEPARATOR = "_"
# BCP-47 → espeak-ng, where the first subtag alone does not find the voice.
_ALIASES = {"en": "en-us", "fr": "fr-fr", "no": "nb", "zh": "cmn", "tl": "fil", "chr": "chr-us-qaaa-x-west"}
_SILENT_LEVEL = 16  # of 32768; espeak-ng's pauses and closures are zero but for rounding
_MIN_CLOSURE_SECONDS = 0.005
_WITHOUT_DICTIONARY = frozenset(("fo", "kaa", "xex"))  # listed, but the wheel has no dictionary for them
_LANGUAGE_SWITCH = re.compile(r"\([a-z]{2,3}(?:-[a-z0-9-]+)?\)")


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


class _Voice(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("unused", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Mark:
    """A phone or a word: label, start and duration in seconds."""

    label: str
    start: float
    duration: float


@dataclass(frozen=True)
class Spoken:
    """A sentence: 16-bit samples, their rate in Hz, its phones (end to end, silences included) and its words."""

    samples_T: NDArray[np.int16]
    sample_rate: int
    phones: list[Mark]
    words: list[Mark]


@lru_cache(maxsize=1)
def languages() -> dict[str, str]:
    """Return {language tag in lower case: voice} of all languages that espeak-ng speaks."""
    with _LIBRARY as library:
        library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        listed = library.espeak_ListVoices(None)
        found: dict[str, str] = {}
        position = 0
        while listed[position]:
            voice = listed[position].contents
            tag = voice.languages[1:].decode()  # the first byte is a priority
            if tag not in _WITHOUT_DICTIONARY:
                found.setdefault(tag.lower(), voice.identifier.decode())
            position += 1
        return found


def voice_of(language: str) -> str:
    """Return espeak-ng's voice for a BCP-47 tag: the tag itself, or its language without the region.

    Raises `DataError` for a language that espeak-ng does not speak, `MissingExtraError` without espeakng-loader.
    """
    from isogloss.core.languages import normalize_language

    known = languages()
    asked = language.replace("_", "-").lower()
    tag = normalize_language(language).tag.lower()
    base = tag.split("-")[0]
    for candidate in (asked, tag, _ALIASES.get(base, base), base):
        if candidate in known:
            return known[candidate]
    for candidate in sorted(known):
        if candidate.split("-")[0] == base:
            return known[candidate]
    raise DataError(
        f"espeak-ng does not speak `{language}`; it knows {len(known)} languages and varieties: {', '.join(sorted(known))}"
    )


def speak(text: str, voice: str, *, variant: str | None = None, words_per_minute: int = 160, pitch: int = 50) -> Spoken:
    """Synthesise a sentence; the result depends on the arguments alone.

    `variant` is one of espeak-ng's voice variants ("f1", "m3", …); `words_per_minute` 80 to 450, `pitch` 0 to 100.
    """
    parts: list[NDArray[np.int16]] = []
    events: list[tuple[int, int, int, int, str]] = []

    def receive(samples: Any, count: int, event: Any) -> int:
        if samples and count > 0:
            parts.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        position = 0
        while event[position].type != _END:
            item = event[position]
            label = item.id.string.decode("utf-8", errors="ignore") if item.type == _PHONE else ""
            events.append((item.type, item.sample, item.text_position, item.length, label))
            position += 1
        return 0

    callback = _Callback(receive)
    with _LIBRARY as library:
        sample_rate = _LIBRARY.reload()
        library = _LIBRARY.handle
        library.espeak_SetSynthCallback(callback)
        _set_voice(library, f"{voice}+{variant}" if variant else voice)
        library.espeak_SetParameter(_RATE, words_per_minute, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        data = text.encode() + b"\0"
        status = library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, _UTF8, None, None)
        library.espeak_SetSynthCallback(_Callback(0))
    if status != 0 or not parts:
        raise DataError(
            f"espeak-ng cannot say {text!r} with the voice `{voice}`; usually because the text has no words"
        )
    samples_T = np.concatenate(parts)
    phones = _phones(events, samples_T, sample_rate)
    return Spoken(samples_T, sample_rate, phones, _words(events, text, phones, sample_rate))


def ipa(text: str, voice: str) -> str:
    """Return espeak-ng's IPA of a text, phones separated by `_` and words by spaces, stress and language marks included."""
    buffer = ctypes.create_string_buffer(text.encode())
    clauses = []
    with _LIBRARY as library:
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        _set_voice(library, voice)
        rest = ctypes.c_void_p(ctypes.addressof(buffer))
        while rest.value:
            clause = library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, ord(_PHONE_SEPARATOR) << 8 | 0x2)
            clauses.append(clause.decode("utf-8", errors="ignore"))
    return " ".join(clauses)


def without_switches(phones: str) -> str:
    """Remove the marks of a switch to another language, such as `(en)`."""
    return _LANGUAGE_SWITCH.sub("", phones)


def strip_stress(phone: str) -> str:
    """Remove stress marks, espeak-ng's hyphens (a reduced vowel) and marks of a switch of language from a phone."""
    return without_switches(phone).translate(_NOT_SEGMENTAL).strip()


_NOT_SEGMENTAL = str.maketrans("", "", "ˈˌ-'|")


def _set_voice(library: ctypes.CDLL, voice: str) -> None:
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise DataError(f"espeak-ng has no voice `{voice}`; variants are `f1` to `f5` and `m1` to `m8`")


def _phones(events: list[tuple[int, int, int, int, str]], samples_T: NDArray[np.int16], sample_rate: int) -> list[Mark]:
    """Turn the starts of phones into phones end to end, from the first sample to the last; silences are merged."""
    starts = [(sample, strip_stress(label)) for kind, sample, _, _, label in events if kind == _PHONE]
    ends = [sample for sample, _ in starts[1:]] + [len(samples_T)]
    merged: list[tuple[int, str]] = [(0, SILENCE)]
    for (sample, label), end in zip(starts, ends, strict=True):
        last_sample, last_label = merged[-1]
        if not label:
            # No name: a pause, or a glide between two vowels, which then belongs to the first of them.
            if not _is_silent(samples_T[sample:end]):
                continue
            label = SILENCE
        # A release or a nasality that espeak-ng times on its own belongs to the phone before.
        modifiers = _leading_modifiers(label)
        if modifiers and last_label != SILENCE:
            merged[-1] = (last_sample, last_label + modifiers)
            label = label[len(modifiers) :]
            if not label:
                continue
        if label == SILENCE == last_label:
            continue
        if sample <= last_sample:
            # Two at the same place: a glide or a length mark that is timed together with its vowel.
            label = _joined(merged.pop()[1], label)
            sample = last_sample
        merged.append((sample, label))
    merged = _with_closures(merged, samples_T, sample_rate)
    ends = [sample for sample, _ in merged[1:]] + [len(samples_T)]
    return [
        Mark(label, sample / sample_rate, (end - sample) / sample_rate)
        for (sample, label), end in zip(merged, ends, strict=True)
        if end > sample
    ]


def _with_closures(
    phones: list[tuple[int, str]], samples_T: NDArray[np.int16], sample_rate: int
) -> list[tuple[int, str]]:
    """Give a stop its closure: espeak-ng reports a stop at its burst, after the silence that is half of it."""
    moved = phones[:1]
    for sample, label in phones[1:]:
        earliest, last_label = moved[-1]
        if SILENCE not in (label, last_label):
            loud = np.flatnonzero(np.abs(samples_T[earliest:sample].astype(np.int32)) > _SILENT_LEVEL)
            start = max(earliest + int(loud[-1]) + 1, earliest + sample_rate // 100) if len(loud) else sample
            if sample - start >= _MIN_CLOSURE_SECONDS * sample_rate:
                sample = start
        moved.append((sample, label))
    return moved


def _is_silent(samples_T: NDArray[np.int16]) -> bool:
    # The end of the phone before may reach into a pause, so the second half decides.
    second = samples_T[len(samples_T) // 2 :]
    return len(second) == 0 or int(np.abs(second.astype(np.int32)).max()) <= _SILENT_LEVEL


def _leading_modifiers(label: str) -> str:
    count = 0
    while count < len(label) and unicodedata.category(label[count]) in ("Mn", "Lm"):
        count += 1
    return label[:count]


def _joined(first: str, second: str) -> str:
    if first == SILENCE:
        return second
    return first if second == SILENCE else first + second


def _words(events: list[tuple[int, int, int, int, str]], text: str, phones: list[Mark], sample_rate: int) -> list[Mark]:
    """Return the words with the span of their phones: a word ends where the next begins or a silence follows."""
    starts = [
        (sample / sample_rate, text[first - 1 : first - 1 + n]) for kind, sample, first, n, _ in events if kind == _WORD
    ]
    words = []
    for number, (start, label) in enumerate(starts):
        limit = starts[number + 1][0] if number + 1 < len(starts) else float("inf")
        spoken = [p for p in phones if p.label != SILENCE and start - 1e-4 <= p.start < limit - 1e-4]
        if spoken and label.strip():
            words.append(Mark(label.strip(), spoken[0].start, spoken[-1].start + spoken[-1].duration - spoken[0].start))
    return words


class _Library:
    """The one loaded copy of the library; entering it takes the lock, since espeak-ng is not for several threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._handle: ctypes.CDLL | None = None

    def __enter__(self) -> ctypes.CDLL:
        self._lock.acquire()
        try:
            if self._handle is None:
                self.reload()
            return self.handle
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    @property
    def handle(self) -> ctypes.CDLL:
        """The loaded library."""
        assert self._handle is not None
        return self._handle

    def reload(self) -> int:
        """Unload the library with all its state, load it again, and return its sample rate in Hz."""
        try:
            import espeakng_loader
        except ImportError:
            raise MissingExtraError("espeakng-loader", "phones", "Synthesised speech and phones of text") from None
        if self._handle is not None:
            self._handle.espeak_Terminate()
            _ctypes.dlclose(self._handle._handle)
            self._handle = None
        self._handle = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        path = str(espeakng_loader.get_data_path()).encode()
        sample_rate = self._handle.espeak_Initialize(_SYNCHRONOUS, 0, path, _PHONEME_EVENTS_IN_IPA | _DO_NOT_EXIT)
        if sample_rate <= 0:
            raise DataError(
                "espeak-ng cannot be started; its data files are probably damaged: reinstall `espeakng-loader`"
            )
        self._handle.espeak_ng_SetRandSeed(ctypes.c_long(1))
        return int(sample_rate)


_LIBRARY = _Library()
