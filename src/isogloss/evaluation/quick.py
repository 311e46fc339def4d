"""A probe that takes seconds, for use during training: is the encoder learning, or only its loss?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from isogloss.core.rng import derive_seed
from isogloss.encoders.base import Encoder
from isogloss.evaluation.features import FeatureStore, extract_features
from isogloss.evaluation.labels import alignment_items
from isogloss.evaluation.lid import LidSettings, languages_tested, pool, probe_language
from isogloss.evaluation.probes import ProbeSplits, SearchBudget, best_on_dev, probe_phones, speaker_of

LID = LidSettings(num_folds=3)
NOTHING_MEASURED = "the quick probe measures nothing on {}: it needs phone alignments of three utterances, or two languages of two speakers"


def quick_probe(
    encoder: Encoder,
    cuts: Sequence[Any],
    *,
    max_seconds: float = 240.0,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return what a few minutes of speech tell about an encoder: fractions, for the log, not for a table.

    Keys: `probe/phone_accuracy` and `probe/phone_layer` where three speakers (else cuts) have phone alignments,
    `probe/language_accuracy` where two languages have two speakers, and `probe/seconds` that it took. The same cuts are
    used whenever the seed is the same; by default three layers are looked at: the middle, the one at three quarters, and
    the last.
    """
    began = time.monotonic()
    num = encoder.num_layers
    chosen = sorted({(num + 1) // 2, (3 * num + 3) // 4, num}) if layers is None else list(layers)
    subset = _sample(cuts, max_seconds, seed)
    store = extract_features(encoder, subset, layers=chosen)
    figures: dict[str, float] = {}
    figures.update(_phones(store, subset, seed))
    figures.update(_languages(store, subset))
    figures["probe/seconds"] = time.monotonic() - began
    return figures


def measurable(cuts: Sequence[Any], *, max_seconds: float = 240.0, seed: int = 0) -> list[str]:
    """Return in words what `quick_probe` can measure on these cuts with these settings; empty where nothing."""
    subset = _sample(cuts, max_seconds, seed)
    found = []
    if parts := _phone_parts(subset, seed):
        found.append(f"phones of {sum(map(len, parts))} utterances")
    if languages := _told_apart(subset):
        found.append(f"languages ({', '.join(languages)})")
    return found


def _sample(cuts: Sequence[Any], max_seconds: float, seed: int) -> list[Any]:
    """Return a fixed sample in which every speaker is met early."""
    queues: dict[str, list[Any]] = {}
    for cut in sorted(cuts, key=lambda cut: derive_seed(seed, "quick probe", cut.id)):
        queues.setdefault(speaker_of(cut), []).append(cut)
    chosen: list[Any] = []
    seconds = 0.0
    position = 0
    while seconds < max_seconds and any(position < len(queue) for queue in queues.values()):
        for queue in queues.values():
            if position < len(queue) and seconds < max_seconds:
                chosen.append(queue[position])
                seconds += queue[position].duration
        position += 1
    return chosen


def _phone_parts(cuts: Sequence[Any], seed: int) -> list[list[Any]]:
    """Return three parts of the cuts with phone alignments, speakers apart where there are three; none where there are too few."""
    aligned = [cut for cut in cuts if alignment_items(cut)]
    names = sorted({speaker_of(cut) for cut in aligned}, key=lambda name: derive_seed(seed, name))
    if len(names) >= 3:
        part = {name: number % 3 for number, name in enumerate(names)}
        parts = [[cut for cut in aligned if part[speaker_of(cut)] == which] for which in range(3)]
    elif len(aligned) >= 3:
        parts = [aligned[which::3] for which in range(3)]
    else:
        parts = []
    return parts


def _phones(store: FeatureStore, cuts: Sequence[Any], seed: int) -> dict[str, float]:
    parts = _phone_parts(cuts, seed)
    if not parts:
        return {}
    budget = SearchBudget(weight_decays=(1e-3,), max_iterations=30, max_train_frames=15_000, max_dev_frames=15_000)
    parts.sort(key=lambda part: -sum(cut.duration for cut in part))
    best = best_on_dev(probe_phones(store, ProbeSplits(*parts), budget=budget))
    return {"probe/phone_accuracy": best.accuracy, "probe/phone_layer": float(best.layer)}


def _told_apart(cuts: Sequence[Any]) -> list[str]:
    """Return the languages that can be tested; speakers of several may leave none."""
    return languages_tested(cuts, "speaker", LID)


def _languages(store: FeatureStore, cuts: Sequence[Any]) -> dict[str, float]:
    heard = [cut for cut in cuts if len(store[cut.id, store.layers[0]])]  # one without a frame is not pooled
    if not _told_apart(heard):
        return {}
    result = probe_language(pool(store, heard, LID), layers=store.layers[-1:], settings=LID)
    return {"probe/language_accuracy": result.accuracy}
