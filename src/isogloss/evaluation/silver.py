"""Silver phone alignments: for a corpus with texts or phone sequences and no times. They are called silver wherever used."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from lhotse.supervision import AlignmentItem

from isogloss.core.errors import DataError
from isogloss.data.audio import read_audio
from isogloss.data.phonemes import can_phonemize, phonemize_words
from isogloss.evaluation.aligner import AlignerSettings, train_aligner
from isogloss.evaluation.features import Progress
from isogloss.evaluation.labels import Inventory, alignment_items, ipa_segments, is_silence
from isogloss.nn.filterbank import SAMPLE_RATE, log_mel, normalize

WordsOf = Callable[[Any], Sequence[Sequence[str]]]  # a cut → its words → their phones; empty where it has none


@dataclass
class SilverReport:
    """What became of every cut: aligned, without phones, too short for its phones, or a text that does not fit."""

    num_aligned: int = 0
    num_phones: int = 0
    without_phones: list[str] = field(default_factory=list)
    too_short: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)


def align_silver(
    cuts: Sequence[Any],
    words_of: WordsOf,
    *,
    settings: AlignerSettings | None = None,
    max_deviations: float = 5.0,
    min_excess: float = 1.0,
    progress: Progress | None = None,
) -> tuple[list[Any], SilverReport]:
    """Return the cuts that could be aligned, with "phone" and "word" alignments, and a report.

    One aligner is trained on all cuts together; the phones must therefore be of one alphabet (IPA). An utterance whose CTC
    loss per phone lies more than `max_deviations` robust deviations, and more than `min_excess` nats, above the median has a
    text that does not fit, and is left out. The cuts given are not changed.
    """
    report = SilverReport()
    kept: list[Any] = []
    words: list[list[list[str]]] = []
    mels: list[torch.Tensor] = []
    for cut in cuts:
        own = [[phone for phone in word if not is_silence(phone)] for word in words_of(cut)]
        own = [word for word in own if word]
        if not own:
            report.without_phones.append(cut.id)
            continue
        mel_SF = normalize(log_mel(torch.from_numpy(read_audio(cut, sample_rate=SAMPLE_RATE))))
        phones = [phone for word in own for phone in word]
        repeats = sum(a == b for a, b in itertools.pairwise(phones))
        if (len(mel_SF) + 1) // 2 < len(phones) + repeats:
            report.too_short.append(cut.id)
            continue
        kept.append(cut)
        words.append(own)
        mels.append(mel_SF)
    if not kept:
        raise DataError(
            f"none of {len(cuts)} cuts can be aligned: {len(report.without_phones)} have no phones and "
            f"{len(report.too_short)} are too short for theirs; usually because the corpus has no texts, or "
            "espeak-ng no voice for their language; then put a `phones.ctm` beside the metadata, or try `--labels ipa` where the "
            "texts are written as they are spoken"
        )
    sequences = [[phone for word in own for phone in word] for own in words]
    inventory = Inventory.of(sequences)
    targets = [torch.from_numpy(inventory.encode(sequence)) for sequence in sequences]
    ends_word = [[number + 1 == len(word) for word in own for number in range(len(word))] for own in words]
    aligner = train_aligner(mels, targets, len(inventory), settings=settings, progress=progress)
    aligned = aligner.align(mels, targets, ends_word)
    losses = np.array([item.loss for item in aligned])
    median = float(np.median(losses))
    limit = median + max(min_excess, max_deviations * 1.4826 * float(np.median(np.abs(losses - median))))
    result = []
    for cut, own, fit in zip(kept, words, aligned, strict=True):
        if fit.loss > limit:
            report.unfit.append(cut.id)
            continue
        result.append(_with_alignment(cut, own, fit.starts_U, fit.ends_U, fit.scores_U))
        report.num_phones += len(fit.starts_U)
    report.num_aligned = len(result)
    return result, report


@dataclass(frozen=True)
class BoundaryErrors:
    """How far phone starts lie from a reference's, in seconds; fractions within 20 and 50 ms.

    The `centred` figures are those after the median signed difference, `offset`, has been taken out: two annotations may
    agree but for a constant.
    """

    num_boundaries: int
    offset: float
    median: float
    within_20ms: float
    within_50ms: float
    centred_median: float
    centred_within_20ms: float
    centred_within_50ms: float


def boundary_errors(references: Sequence[Any], aligned: Sequence[Any]) -> BoundaryErrors:
    """Compare the starts of phones of cuts that have the same ids and the same phone sequences (silence aside)."""
    reference_of = {cut.id: cut for cut in references}
    errors: list[float] = []
    for cut in aligned:
        ours = [item for item in alignment_items(cut) if not is_silence(item.symbol)]
        theirs = [item for item in alignment_items(reference_of[cut.id]) if not is_silence(item.symbol)]
        if [item.symbol for item in ours] != [item.symbol for item in theirs]:
            raise DataError(
                f"cut `{cut.id}` has other phones in the reference; boundaries can be compared of equal ones only"
            )
        errors += [a.start - b.start for a, b in zip(ours, theirs, strict=True)]
    if not errors:
        raise DataError("there are no boundaries to compare")
    error = np.array(errors)
    offset = float(np.median(error))
    slack = 1e-6
    plain, centred = np.abs(error), np.abs(error - offset)
    return BoundaryErrors(
        len(error),
        offset,
        float(np.median(plain)),
        float((plain <= 0.02 + slack).mean()),
        float((plain <= 0.05 + slack).mean()),
        float(np.median(centred)),
        float((centred <= 0.02 + slack).mean()),
        float((centred <= 0.05 + slack).mean()),
    )


def words_of_alignment(cut: Any) -> list[list[str]]:
    """Return the words of a cut's phones by its "phone" and "word" alignments; one word where it has no words."""
    phones = [item for item in alignment_items(cut) if not is_silence(item.symbol)]
    starts = [item.start for item in alignment_items(cut, "word") if not is_silence(item.symbol)]
    words: list[list[str]] = []
    current = -1
    for phone in phones:
        number = int(np.searchsorted(starts, phone.start + 1e-3, side="right"))
        if not words or number != current:
            words.append([])
        current = number
        words[-1].append(phone.symbol)
    return words


def words_of_text(cut: Any) -> list[list[str]]:
    """Return the words of a cut's text as IPA phones by espeak-ng, in its variety where it tells one ("en-US").

    Empty where it has no text or espeak-ng does not speak its language. Raises `MissingExtraError` without espeakng-loader.
    """
    supervision = cut.supervisions[0] if cut.supervisions else None
    if supervision is None or not supervision.text or not supervision.language:
        return []
    for language in ((cut.custom or {}).get("variety"), supervision.language):
        if language and can_phonemize(language):
            return phonemize_words(supervision.text, language)
    return []


def words_of_ipa(cut: Any) -> list[list[str]]:
    """Return the words of a cut whose text is IPA, as segments."""
    text = next((s.text for s in cut.supervisions if s.text), "")
    return [segments for word in text.split() if (segments := ipa_segments(word))]


def _with_alignment(
    cut: Any, words: Sequence[Sequence[str]], starts: Sequence[float], ends: Sequence[float], scores: Sequence[float]
) -> Any:
    phones = [phone for word in words for phone in word]
    duration = float(cut.duration)

    def item(symbol: str, start: float, end: float, score: float | None) -> AlignmentItem:
        start, end = min(start, duration), min(end, duration)
        return AlignmentItem(symbol, round(start, 4), round(end - start, 4), score)

    phone_items = [item(*values) for values in zip(phones, starts, ends, scores, strict=True)]
    word_items = []
    first = 0
    for word in words:
        last = first + len(word) - 1
        word_items.append(item(" ".join(word), starts[first], ends[last], None))
        first = last + 1
    copy = cut.with_id(cut.id)
    supervision = cut.supervisions[0]
    alignment = {**(supervision.alignment or {}), "phone": phone_items, "word": word_items}
    copy.supervisions = [replace(supervision, alignment=alignment), *cut.supervisions[1:]]
    copy.custom = {**(cut.custom or {}), "alignment_kind": "silver"}
    return copy
