"""Cut long recordings where nobody speaks, reading a minute at a time.

Speech is found by silero-vad (extra `vad`; its model lies in the wheel) or, without it, by energy; the report says which. The
scores of either are one number per 32 ms, and the cutting is the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from lhotse import MonoCut
from lhotse.utils import fastcopy
from numpy.typing import NDArray

from isogloss.core.errors import ConfigError, DataError, MissingExtraError
from isogloss.data._rows import Rejected
from isogloss.data.audio import read_audio

Method = Literal["auto", "silero", "energy"]
SAMPLE_RATE = 16_000
FRAME = 512  # samples per score; silero-vad's own step at 16 kHz
_WINDOW_SECONDS = 60.0  # a whole number of frames
_THRESHOLD = 0.5
_CONTRAST_DB = 6.0
_SIDE_BY_SIDE = 16
_LOCAL_FRAMES = 3750  # two minutes: the noise floor of a broadcast moves

Progress = Callable[[float, float], None]


@dataclass
class SegmentReport:
    """`cuts` to go on with, the method that found speech, seconds in and out, and recordings in which no speech was found or read."""

    method: str
    cuts: list[MonoCut] = field(default_factory=list)
    seconds_in: float = 0.0
    rejected: list[Rejected] = field(default_factory=list)
    note: str = ""

    @property
    def seconds_out(self) -> float:
        """Seconds of the cuts."""
        return float(sum(cut.duration for cut in self.cuts))


@dataclass(frozen=True)
class SegmentSettings:
    """Lengths in seconds: of a cut, of a silence that may divide, of speech that counts, and of what is kept around speech."""

    min_seconds: float = 1.0
    max_seconds: float = 15.0
    min_silence: float = 0.3
    min_speech: float = 0.2
    padding: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.min_seconds < self.max_seconds:
            raise ConfigError(
                f"`min_seconds` must be above 0 and below `max_seconds`, but they are {self.min_seconds} and {self.max_seconds}"
            )
        if min(self.min_silence, self.min_speech, self.padding) < 0:
            raise ConfigError("`min_silence`, `min_speech` and `padding` must not be negative")


def segment(
    cuts: Iterable[MonoCut],
    *,
    settings: SegmentSettings | None = None,
    method: Method = "auto",
    progress: Progress | None = None,
) -> SegmentReport:
    """Divide every cut longer than `max_seconds` at silences; shorter ones are kept as they are.

    A part keeps language, speaker, gender and custom fields; a text or an alignment belongs to the whole and is left out.
    `method` "auto" is silero where it is installed. `progress(done, total)` counts seconds. Raises `MissingExtraError` for
    "silero" without the extra.
    """
    settings = settings or SegmentSettings()
    name, scorer, note = _scorer(method)
    report = SegmentReport(name, note=note)
    cuts = list(cuts)
    total = sum(cut.duration for cut in cuts)
    for cut in cuts:
        try:
            parts = [cut] if cut.duration <= settings.max_seconds else list(_divide(cut, scorer, settings))
        except DataError as error:
            report.rejected.append(Rejected(cut.id, cut.id, getattr(error, "verdict", "unreadable"), str(error)))
            parts = []
        else:
            if not parts:
                report.rejected.append(Rejected(cut.id, cut.id, "no speech", "no speech was found in it"))
        report.cuts += parts
        report.seconds_in += cut.duration
        if progress is not None:
            progress(report.seconds_in, total)
    return report


def find_segments(
    scores_S: NDArray[np.float32], duration: float, settings: SegmentSettings
) -> list[tuple[float, float]]:
    """Return (start, end) in seconds of what to cut out of a recording with one speech score in [0, 1] per 32 ms.

    Silences shorter than `min_silence` and speech shorter than `min_speech` do not count; a stretch above `max_seconds` is
    divided where its score is lowest; neighbours are joined as long as they stay below `max_seconds`, and what is still
    shorter than `min_seconds` is left out.
    """
    seconds = FRAME / SAMPLE_RATE
    runs = [(a * seconds, min(b * seconds, duration)) for a, b in _runs(scores_S >= _THRESHOLD)]
    runs = [run for run in _close_gaps(runs, settings.min_silence) if run[1] - run[0] >= settings.min_speech]
    pieces = [piece for run in runs for piece in _halve(scores_S, *run, settings.max_seconds - 2 * settings.padding)]
    joined: list[tuple[float, float]] = []
    for start, end in pieces:
        reach = settings.max_seconds - 2 * settings.padding
        if joined and (joined[-1][1] - joined[-1][0] < settings.min_seconds or end - start < settings.min_seconds):
            gap = start - joined[-1][1]
            if gap <= 2 * settings.min_silence + settings.min_seconds and end - joined[-1][0] <= reach:
                joined[-1] = (joined[-1][0], end)
                continue
        joined.append((start, end))
    return [piece for piece in _pad(joined, duration, settings.padding) if piece[1] - piece[0] >= settings.min_seconds]


def energy_scores(levels_S: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 for frames whose level (dB) is well above the local noise floor, else 0.

    The floor is the 10th percentile of two minutes, the top the 95th; the threshold lies 35 % of the way up. Where the two are
    less than 6 dB apart there is nothing to tell speech by, and all frames count.
    """
    scores_S = np.zeros(len(levels_S), np.float32)
    for start in range(0, len(levels_S), _LOCAL_FRAMES):
        local = levels_S[max(0, start - _LOCAL_FRAMES // 2) : start + _LOCAL_FRAMES + _LOCAL_FRAMES // 2]
        floor, top = np.percentile(local, [10, 95])
        threshold = floor + 0.35 * (top - floor) if top - floor >= _CONTRAST_DB else -np.inf
        scores_S[start : start + _LOCAL_FRAMES] = levels_S[start : start + _LOCAL_FRAMES] >= threshold
    return scores_S


Scorer = Callable[[MonoCut], NDArray[np.float32]]


def _scorer(method: Method) -> tuple[str, Scorer, str]:
    if method not in ("auto", "silero", "energy"):
        raise ConfigError(f"`method` must be auto, silero or energy, but is {method!r}")
    if method != "energy":
        try:
            return "silero", _silero(), ""
        except MissingExtraError:
            if method == "silero":
                raise
    note = (
        ""
        if method == "energy"
        else "silero-vad is not installed, so energy tells speech: music and noise are kept; see the extra `vad`"
    )
    return "energy", lambda cut: energy_scores(np.concatenate(list(_levels(cut)))), note


def _silero() -> Scorer:
    try:
        from silero_vad import load_silero_vad
    except ImportError:
        raise MissingExtraError("silero-vad", "vad", "finding speech by silero-vad") from None
    import torch

    model: Any = load_silero_vad()

    def score(cut: MonoCut) -> NDArray[np.float32]:
        scores = []
        windows = _frames(cut)
        # minutes side by side: each has its own state, and a step costs little more for sixteen than for one
        while batch := list(itertools.islice(windows, _SIDE_BY_SIDE)):
            lengths = [len(frames_SF) for frames_SF in batch]
            frames_BSF = np.zeros((len(batch), max(lengths), FRAME), np.float32)
            for row_SF, frames_SF in zip(frames_BSF, batch, strict=True):
                row_SF[: len(frames_SF)] = frames_SF
            model.reset_states()
            with torch.inference_mode():
                scores_BS = torch.cat(
                    [model(frames_BF, SAMPLE_RATE) for frames_BF in torch.from_numpy(frames_BSF).unbind(1)], 1
                )
            scores += [scores_S[:length] for scores_S, length in zip(scores_BS.numpy(), lengths, strict=True)]
        return np.concatenate(scores).astype(np.float32)

    return score


def _levels(cut: MonoCut) -> Iterator[NDArray[np.float32]]:
    for frames_SF in _frames(cut):
        centered_SF = frames_SF - frames_SF.mean(axis=1, keepdims=True)
        yield (10 * np.log10((centered_SF**2).mean(axis=1) + 1e-10)).astype(np.float32)


def _frames(cut: MonoCut) -> Iterator[NDArray[np.float32]]:
    """Yield a minute at a time as frames of 512 samples, the last one filled with zeros."""
    start = 0.0
    while start < cut.duration:
        length = min(_WINDOW_SECONDS, cut.duration - start)
        if length * SAMPLE_RATE < 1:
            return
        samples = read_audio(cut, sample_rate=SAMPLE_RATE, start=start, duration=length)
        yield np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
        start += _WINDOW_SECONDS


def _divide(cut: MonoCut, scorer: Scorer, settings: SegmentSettings) -> Iterator[MonoCut]:
    for start, end in find_segments(scorer(cut), cut.duration, settings):
        first, length = round(start * SAMPLE_RATE) / SAMPLE_RATE, round((end - start) * SAMPLE_RATE) / SAMPLE_RATE
        length = min(length, cut.duration - first)
        name = f"{cut.id}-{round(first * 1000):08d}"
        supervisions = [
            fastcopy(whole, id=name, start=0.0, duration=length, text=None, alignment=None)
            for whole in cut.supervisions[:1]
        ]
        custom = {
            key: value for key, value in (cut.custom or {}).items() if key not in ("sha256", "translations", "prompt")
        }
        yield fastcopy(cut, id=name, start=cut.start + first, duration=length, supervisions=supervisions, custom=custom)


def _runs(is_speech_S: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_speech_S, [False]))))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _close_gaps(runs: list[tuple[float, float]], min_silence: float) -> list[tuple[float, float]]:
    closed: list[tuple[float, float]] = []
    for start, end in runs:
        if closed and start - closed[-1][1] < min_silence:
            closed[-1] = (closed[-1][0], end)
        else:
            closed.append((start, end))
    return closed


def _halve(scores_S: NDArray[np.float32], start: float, end: float, longest: float) -> Iterator[tuple[float, float]]:
    """Divide at the lowest score of the middle third until nothing is longer than `longest`."""
    if end - start <= longest:
        yield start, end
        return
    seconds = FRAME / SAMPLE_RATE
    first = int((start + (end - start) / 3) / seconds)
    last = max(first + 1, int((end - (end - start) / 3) / seconds))
    middle = (first + int(np.argmin(scores_S[first:last]))) * seconds
    yield from _halve(scores_S, start, middle, longest)
    yield from _halve(scores_S, middle, end, longest)


def _pad(pieces: list[tuple[float, float]], duration: float, padding: float) -> list[tuple[float, float]]:
    """Keep a little around each piece, at most up to the middle of the silence between two."""
    padded = []
    for number, (start, end) in enumerate(pieces):
        before = (pieces[number - 1][1] + start) / 2 if number else 0.0
        after = (end + pieces[number + 1][0]) / 2 if number + 1 < len(pieces) else duration
        padded.append((max(start - padding, before), min(end + padding, after)))
    return padded
