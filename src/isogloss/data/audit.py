"""Look at every recording of a corpus before anything is trained on it: the good are used, each bad one is named with a reason.

used + rejected = input, always. Recordings are decoded in helper processes with a memory and a time limit, so a file that
kills a decoder is one line of the report.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhotse import CutSet, MonoCut
from lhotse.utils import fastcopy

from isogloss.core.errors import DataError
from isogloss.data._examine import TIMEOUT_SECONDS, Examination, Examiner, Statistics, Window
from isogloss.data._paths import PathLike, printable
from isogloss.data._rows import Rejected, misspelled_columns
from isogloss.data._write import write_text
from isogloss.data.audio import MAX_AMPLITUDE, AudioError, Source, source_of_cut
from isogloss.data.language_faults import language_faults

Progress = Callable[[int, int | None], None]
_SILENT_DEVIATION = 1e-4  # −80 dB of full scale: a digital zero, or dither
_CONSTANT_MEAN = 1e-3
_LARGE_OFFSET = 0.05
_FULL_SCALE = 1.001
_CLIPPED_SHARE = 0.01
_TOLERANCE_SECONDS = 0.025


@dataclass
class AuditReport:
    """What an audit found: `cuts` that can be used (with `custom["sha256"]`), `rejected` ones, and warnings (id, text) about used ones.

    `naming_faults` are (code, folder or column, text): languages that no registry knows, folders that name none, and columns
    with a misspelled name.
    `len(cuts) + len(rejected)` is `num_input`. Durations are in seconds.
    """

    num_input: int = 0
    cuts: list[MonoCut] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    naming_faults: list[tuple[str, str]] = field(default_factory=list)

    @property
    def used_seconds(self) -> float:
        """Seconds of speech that can be used."""
        return float(sum(cut.duration for cut in self.cuts))

    @property
    def verdicts(self) -> dict[str, int]:
        """How many were rejected for each kind of reason, most frequent first."""
        return dict(collections.Counter(item.verdict for item in self.rejected).most_common())

    @property
    def damaged_share(self) -> float:
        """Share of the input that was rejected for another reason than being there twice."""
        damaged = sum(item.verdict not in ("duplicate", "duplicate id") for item in self.rejected)
        return damaged / self.num_input if self.num_input else 0.0

    def check_budget(self, max_rejected: float) -> None:
        """Raise a `DataError` where a larger share than `max_rejected` was rejected (duplicates do not count)."""
        if self.damaged_share > max_rejected:
            worst = self.rejected[0]
            raise DataError(
                f"{self.damaged_share:.1%} of {self.num_input} recordings cannot be used, which is more than {max_rejected:.1%}; usually "
                f"because a copy was interrupted; first: {worst.id}: {worst.reason}; allow more with `--max-rejected`"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for report.json."""
        return {
            "input": self.num_input,
            "used": len(self.cuts),
            "rejected": len(self.rejected),
            "used_hours": round(self.used_seconds / 3600, 4),
            "verdicts": self.verdicts,
            "rejections": [vars(item) for item in self.rejected],
            "warnings": [{"id": name, "warning": text} for name, text in self.warnings],
            "naming_faults": [{"name": name, "warning": text} for name, text in self.naming_faults],
        }

    def write(self, path: PathLike) -> None:
        """Write the report as JSON, whole or not at all."""
        write_text(Path(path), json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n")


def audit(
    corpus: CutSet | Iterable[MonoCut | Rejected],
    *,
    min_seconds: float = 0.1,
    max_seconds: float | None = None,
    keep_duplicates: bool = False,
    num_workers: int | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    folder: PathLike | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Decode everything and sort it into used and rejected.

    `corpus` is a `CutSet` or what `inputs.iterate_corpus` yields, so that files without a readable header are counted too. Rejected
    are recordings that are unreadable, damaged, cut short, not what the manifest says (rate, channels, length, or the
    `sha256` of an earlier audit), not finite, beyond 10^5 times full scale, silent, constant, shorter than `min_seconds`, longer
    than `max_seconds`, or there before (by decoded content, unless `keep_duplicates`; by id, always).
    `folder` is a bare folder of audio whose subfolders are to name languages. `progress(done, total)` is called after each cut.
    """
    total = len(corpus) if isinstance(corpus, CutSet) and not corpus.is_lazy else None
    total = len(corpus) if isinstance(corpus, list | tuple) else total
    workers = num_workers or min(8, len(os.sched_getaffinity(0)))
    report = AuditReport()
    judge = _Judge(report, min_seconds, max_seconds, keep_duplicates)
    for items, found in _examine_all(corpus, workers, timeout_seconds):
        for number, item in enumerate(items):
            report.num_input += 1
            if isinstance(item, Rejected):
                report.rejected.append(item)
            elif isinstance(found, Examination):
                judge.take(item, found, found.windows[number] if found.windows else Statistics())
            else:
                report.rejected.append(Rejected(item.id, _place(item), found.verdict, found.reason))
            if progress is not None:
                progress(report.num_input, total)
    report.naming_faults = language_faults(report.cuts, folder) + misspelled_columns(report.cuts)
    return report


class _Judge:
    """The verdict on each cut, in the order of the corpus."""

    def __init__(
        self, report: AuditReport, min_seconds: float, max_seconds: float | None, keep_duplicates: bool
    ) -> None:
        self._report, self._keep_duplicates = report, keep_duplicates
        self._min, self._max = min_seconds, max_seconds
        self._ids: set[str] = set()
        self._contents: dict[str, str] = {}

    def take(self, cut: MonoCut, found: Examination, window: Statistics) -> None:
        """Put a cut where it belongs."""
        fault = self._fault(cut, found, window)
        if fault is not None:
            self._report.rejected.append(Rejected(cut.id, _place(cut), *fault))
            return
        self._ids.add(cut.id)
        self._contents.setdefault(window.sha256, cut.id)
        for text in [*found.warnings, *_warnings(found, window)]:
            self._report.warnings.append((cut.id, text))
        self._report.cuts.append(fastcopy(cut, custom={**(cut.custom or {}), "sha256": window.sha256}))

    def _fault(self, cut: MonoCut, found: Examination, window: Statistics) -> tuple[str, str] | None:
        if cut.id in self._ids:
            return "duplicate id", "the id was used before in this corpus"
        if found.verdict:
            return found.verdict, found.reason
        return _contradiction(cut, found, window) or self._unfit(cut, window) or self._known(cut, window)

    def _unfit(self, cut: MonoCut, window: Statistics) -> tuple[str, str] | None:
        if window.num_non_finite:
            return "non-finite", f"has {window.num_non_finite} samples that are not finite"
        if window.peak > MAX_AMPLITUDE:
            return "amplitude", f"has samples of magnitude {window.peak:g}; full scale is 1"
        if cut.duration < self._min:
            return "too short", f"lasts {cut.duration:.4f} s; at least {self._min:g} s are needed"
        if self._max is not None and cut.duration > self._max:
            return (
                "too long",
                f"lasts {cut.duration:.1f} s; at most {self._max:g} s are wanted; cut it with `isogloss corpus segment`",
            )
        if window.deviation < _SILENT_DEVIATION:
            if abs(window.mean) > _CONSTANT_MEAN:
                return "constant", f"is a constant {window.mean:.3f}: no microphone was connected"
            return "silent", "is silent"
        return None

    def _known(self, cut: MonoCut, window: Statistics) -> tuple[str, str] | None:
        first = self._contents.get(window.sha256)
        if first is None or self._keep_duplicates:
            return None
        return "duplicate", f"has the same samples as {first}"


def _contradiction(cut: MonoCut, found: Examination, window: Statistics) -> tuple[str, str] | None:
    """Return where the recording is not what the manifest says."""
    recording = cut.recording
    if recording.sampling_rate != found.sample_rate:
        return "rate", f"has {found.sample_rate} Hz, but the manifest says {recording.sampling_rate} Hz"
    # one listed channel stands for the mean of all
    if recording.num_channels > 1 and recording.num_channels != found.num_channels:
        return "channels", f"has {found.num_channels} channels, but the manifest says {recording.num_channels}"
    if abs(recording.num_samples - found.num_samples) > _TOLERANCE_SECONDS * found.sample_rate:
        return "changed", f"has {found.num_samples} samples, but the manifest says {recording.num_samples}"
    if window.num_samples == 0:
        return "window", f"ends at {found.num_samples / found.sample_rate:.3f} s, before the utterance begins"
    if window.num_samples < (cut.duration - _TOLERANCE_SECONDS) * found.sample_rate:
        return "window", f"ends at {found.num_samples / found.sample_rate:.3f} s, before the utterance does"
    earlier = (cut.custom or {}).get("sha256")
    if earlier is not None and earlier != window.sha256:
        return "changed", "its samples are not those of an earlier audit (sha256 differs)"
    return None


def _warnings(found: Examination, window: Statistics) -> Iterator[str]:
    if found.sample_rate < 16_000:
        yield f"has {found.sample_rate} Hz: nothing above {found.sample_rate // 2} Hz"
    if found.num_channels > 1:
        yield f"has {found.num_channels} channels"
    if abs(window.mean) > _LARGE_OFFSET * max(1.0, window.peak):
        yield f"has an offset of {window.mean:.3f}"
    if window.peak > _FULL_SCALE:
        yield f"peaks at {window.peak:.3g} times full scale"
    elif window.clipped > _CLIPPED_SHARE:
        yield f"{window.clipped:.1%} of its samples are at full scale"


def _place(cut: MonoCut) -> str:
    source = cut.recording.sources[0] if cut.has_recording else None
    return printable(source.source) if source is not None and source.type == "file" else "audio in memory"


_Group = list[MonoCut | Rejected]


def _examine_all(
    corpus: Iterable[MonoCut | Rejected], workers: int, timeout_seconds: float
) -> Iterator[tuple[_Group, Examination | AudioError]]:
    """Yield each recording's cuts with what was found, in order; a bounded number of recordings is under way at a time."""
    started = [Examiner(timeout_seconds=timeout_seconds) for _ in range(workers)]
    idle: queue.SimpleQueue[Examiner] = queue.SimpleQueue()
    for examiner in started:
        idle.put(examiner)

    def work(group: _Group) -> Examination | AudioError:
        cuts = [item for item in group if isinstance(item, MonoCut)]
        if not cuts:
            return Examination()
        try:
            places = [source_of_cut(cut) for cut in cuts]
        except AudioError as error:
            return error
        windows = [_window(cut, channel) for cut, (_, channel) in zip(cuts, places, strict=True)]
        examiner = idle.get()
        try:
            return examiner.examine(places[0][0], windows)
        finally:
            idle.put(examiner)

    pending: collections.deque[tuple[_Group, Future[Examination | AudioError]]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for group in _groups(corpus):
                pending.append((group, pool.submit(work, group)))
                if len(pending) >= 4 * workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for examiner in started:
                examiner.close()


def _groups(corpus: Iterable[MonoCut | Rejected]) -> Iterator[_Group]:
    """Yield neighbours that share a recording together, so that it is decoded once."""
    for _, group in itertools.groupby(corpus, key=_recording_key):
        yield list(group)


_alone = itertools.count()


def _recording_key(item: MonoCut | Rejected) -> tuple[str, object]:
    source: Source | None = None
    if isinstance(item, MonoCut):
        try:
            source = source_of_cut(item)[0]
        except AudioError:
            source = None
    return (
        ("file", os.fspath(source)) if source is not None and not isinstance(source, bytes) else ("alone", next(_alone))
    )


def _window(cut: MonoCut, channel: int | None) -> Window:
    rate = cut.recording.sampling_rate
    return Window(round(cut.start * rate), round(cut.duration * rate), channel)
