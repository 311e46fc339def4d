"""Language identification on pooled features: nearest neighbours and a linear classifier, speakers or sources held out.

A random split measures speakers and channels, not languages. Here a test utterance's speaker is never in training, and in
the stricter form its whole source (package, site, corpus) is not: only languages that have two sources can be tested so,
and that is the honest figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed
from isogloss.evaluation.features import FeatureSource
from isogloss.evaluation.linear import fit_path
from isogloss.evaluation.probes import known_speaker, speaker_of
from isogloss.evaluation.spectral import SpectralSource

Array = npt.NDArray[Any]
Method = Literal["linear", "knn"]
HeldOut = Literal["utterance", "speaker", "source"]


class TooFewLanguagesError(DataError):
    """Fewer than two languages can be tested; nothing is wrong with the corpus but that."""


@dataclass(frozen=True)
class LidSettings:
    """Fixed beforehand: nothing is searched but the layer, by cross-validation inside each training fold."""

    num_folds: int = 5
    neighbours: int = 10
    weight_decay: float = 1e-2
    with_deviation: bool = True
    min_source_seconds: float = 60.0  # of a language in a source; less is no training set and no test


@dataclass
class Pooled:
    """One vector per utterance and layer (mean over frames, and deviation), with what splits need to know."""

    source: str
    values: dict[int, Array]  # layer → B×D
    ids: list[str]
    languages: list[str]
    speakers: list[str]
    sources: list[str]  # families, see `source_family`
    seconds_B: Array
    unknown_speakers: frozenset[str] = frozenset()  # of `speakers`, those that stand for a recording


@dataclass
class LidResult:
    """Predictions for every utterance that could be tested; `left_out` counts the others and `why` says why.

    `scores_BC` are log-probabilities over `classes` (linear) or votes (kNN); a class that was absent from an utterance's
    training fold scores −inf.
    """

    source: str
    method: Method
    held_out: HeldOut
    layers: list[int]  # the layer chosen in each fold
    num_layers_tried: int
    accuracy: float
    ids: list[str]
    languages: list[str]
    predictions: list[str]
    speakers: list[str | None]
    sources: list[str]
    classes: list[str]
    scores_BC: Array
    left_out: int
    why: str


def pool(source: FeatureSource, cuts: Sequence[Any], settings: LidSettings | None = None) -> Pooled:
    """Pool every layer of every cut that has a language and at least one frame."""
    settings = settings or LidSettings()
    if isinstance(source, SpectralSource):
        # Normalised per cut, every utterance would pool to the same vector: a baseline made to lose.
        source = source.unnormalized()
    rows: dict[int, list[Array]] = {layer: [] for layer in source.layers}
    kept = []
    for cut in cuts:
        if language_of(cut) is None:
            continue
        features = source.features(cut)
        if len(features[source.layers[0]]) == 0:
            continue
        kept.append(cut)
        for layer in source.layers:
            values_SD = np.asarray(features[layer], dtype=np.float32)
            parts = [values_SD.mean(0)] + ([values_SD.std(0)] if settings.with_deviation else [])
            rows[layer].append(np.concatenate(parts))
    if not kept:
        raise DataError("no cut has a language; usually because the folders are not named by language codes")
    return _pooled(source.name, {layer: np.stack(values) for layer, values in rows.items()}, kept)


def languages_tested(cuts: Sequence[Any], held_out: HeldOut, settings: LidSettings) -> list[str]:
    """Return the languages that could be tested on these cuts, by the folds alone and before any features; none where too few."""
    pooled = _pooled("", {}, [cut for cut in cuts if language_of(cut) is not None])
    try:
        folds = folds_of(pooled, held_out, settings)
    except TooFewLanguagesError:
        return []
    return sorted({pooled.languages[i] for _, test in folds for i in test})


def _pooled(source: str, values: dict[int, Array], kept: Sequence[Any]) -> Pooled:
    return Pooled(
        source=source,
        values=values,
        ids=[cut.id for cut in kept],
        languages=[str(language_of(cut)) for cut in kept],
        speakers=[speaker_of(cut) for cut in kept],
        sources=[source_family(cut) for cut in kept],
        seconds_B=np.array([float(cut.duration) for cut in kept]),
        unknown_speakers=frozenset(speaker_of(cut) for cut in kept if known_speaker(cut) is None),
    )


def source_family(cut: Any) -> str:
    """Return a cut's source without the parts of its name that say the language: "prompts-fr-g722" becomes "prompts-g722".

    Packages of one series share studio, codec and channel. Holding out one of them alone would leave its channel in
    training under every other language's name.
    """
    source = str((cut.custom or {}).get("source", "unknown"))
    language = (language_of(cut) or "").lower()
    own = {language, language.split("-")[0], *language.split("-")[1:]}
    return "-".join(part for part in source.split("-") if part.lower() not in own) or source


def language_of(cut: Any) -> str | None:
    """Return the language of a cut's first supervision."""
    languages = [s.language for s in cut.supervisions if s.language]
    return str(languages[0]) if languages else None


def speaker_folds(languages: Sequence[str], speakers: Sequence[str], num_folds: int) -> list[tuple[Array, Array]]:
    """Return (train, test) indices of folds that never share a speaker.

    Speakers of each language are dealt to folds in turn, those with most utterances first. A language with a single speaker
    cannot be tested, and is a distractor in training only.
    """
    fold_of: dict[str, int] = {}
    testable = set()
    for language in sorted(set(languages)):
        own = [s for s, lang in zip(speakers, languages, strict=True) if lang == language]
        names = sorted(set(own), key=lambda s: (-own.count(s), s))
        if len(names) > 1:
            testable.add(language)
        fresh = [name for name in names if name not in fold_of]
        for number, name in enumerate(fresh):
            fold_of[name] = number % num_folds
    fold_B = np.array([fold_of[s] for s in speakers])
    testable_B = np.array([lang in testable for lang in languages], dtype=bool)  # also where there are none
    folds = []
    for fold in range(num_folds):
        test = np.flatnonzero((fold_B == fold) & testable_B).tolist()
        train = np.flatnonzero(fold_B != fold).tolist()
        known = {languages[i] for i in train}
        test = [i for i in test if languages[i] in known]
        # A single-speaker language stays in training, unless that very speaker is tested in another language.
        tested = {speakers[i] for i in test}
        single = [i for i in np.flatnonzero(~testable_B).tolist() if speakers[i] not in tested]
        if test:
            folds.append((np.array(sorted({*train, *single}), dtype=np.int64), np.array(test, dtype=np.int64)))
    return folds


def utterance_folds(ids: Sequence[str], num_folds: int) -> list[tuple[Array, Array]]:
    """Return (train, test) indices of folds at random: voices and channels are known, so this is an upper bound, not a test."""
    fold_B = np.array([derive_seed("fold", name) % num_folds for name in ids])
    folds = ((np.flatnonzero(fold_B != fold), np.flatnonzero(fold_B == fold)) for fold in range(num_folds))
    return [(train, test) for train, test in folds if len(train) and len(test)]


def source_folds(
    languages: Sequence[str], sources: Sequence[str], seconds_B: Array, min_seconds: float
) -> list[tuple[Array, Array]]:
    """Return (train, test) indices that hold out one source each.

    What a source has of a language counts from `min_seconds` on. Training has the languages with two sources or more, from
    all other sources; tested is what the held-out source has of the languages that training has. Training that is left with
    one language is no test.
    """
    amounts: dict[tuple[str, str], float] = {}
    for language, source, seconds in zip(languages, sources, seconds_B.tolist(), strict=True):
        amounts[language, source] = amounts.get((language, source), 0.0) + seconds
    enough = {pair for pair, amount in amounts.items() if amount >= min_seconds}
    several = {lang for lang, _ in enough if sum(pair[0] == lang for pair in enough) > 1}
    pairs = list(zip(languages, sources, strict=True))
    usable = [i for i, pair in enumerate(pairs) if pair in enough and pair[0] in several]
    folds = []
    for held_out in sorted({source for _, source in enough}):
        train = [i for i in usable if sources[i] != held_out]
        known = {languages[i] for i in train}
        test = [i for i in usable if sources[i] == held_out and languages[i] in known]
        if test and len(known) > 1:
            folds.append((np.array(train, dtype=np.int64), np.array(test, dtype=np.int64)))
    return folds


def classify_linear(train_ND: Array, labels_N: Array, test_ND: Array, num_classes: int, weight_decay: float) -> Array:
    """Return log-probabilities of a regularised logistic regression whose classes weigh alike, test×C."""
    counts_C = np.bincount(labels_N, minlength=num_classes)
    weights_C = torch.from_numpy(1.0 / np.maximum(counts_C, 1))
    (model,) = fit_path(
        torch.from_numpy(train_ND),
        torch.from_numpy(labels_N),
        num_classes,
        (weight_decay,),
        class_weights_C=weights_C,
        max_iterations=50,
    )
    scores: Array = model.log_probs(torch.from_numpy(test_ND)).numpy()
    scores[:, counts_C == 0] = -np.inf
    return scores


def classify_knn(train_ND: Array, labels_N: Array, test_ND: Array, num_classes: int, neighbours: int) -> Array:
    """Return each class's votes among the nearest training vectors: Σ (1 + cosine similarity), test×C.

    Vectors are standardised with the training set's mean and deviation first.
    """
    mean, scale = train_ND.mean(0), train_ND.std(0) + 1e-6
    train, test = _unit((train_ND - mean) / scale), _unit((test_ND - mean) / scale)
    similarity = test @ train.T
    count = min(neighbours, len(train))
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    votes = np.zeros((len(test), num_classes), dtype=np.float64)
    weights = 1 + np.take_along_axis(similarity, nearest, axis=1)
    np.add.at(votes, (np.arange(len(test))[:, None], labels_N[nearest]), weights)
    votes[:, np.bincount(labels_N, minlength=num_classes) == 0] = -np.inf
    return votes


def probe_language(
    pooled: Pooled,
    *,
    method: Method = "linear",
    held_out: HeldOut = "speaker",
    layers: Sequence[int] | None = None,
    settings: LidSettings | None = None,
) -> LidResult:
    """Cross-validate language identification; with several layers each fold chooses its own on its training part only."""
    settings = settings or LidSettings()
    layers = tuple(sorted(pooled.values) if layers is None else layers)
    classes = sorted(set(pooled.languages))
    labels_B = np.array([classes.index(language) for language in pooled.languages])
    folds = folds_of(pooled, held_out, settings)
    scores_BC = np.full((len(labels_B), len(classes)), -np.inf)
    chosen = []
    for train, test in folds:
        layer = (
            layers[0]
            if len(layers) == 1
            else _choose_layer(pooled, labels_B, train, layers, method, held_out, settings)
        )
        chosen.append(layer)
        scores_BC[test] = _classify(pooled.values[layer], labels_B, train, test, len(classes), method, settings)
    tested = np.sort(np.concatenate([test for _, test in folds]))
    predicted = scores_BC[tested].argmax(1)
    return LidResult(
        source=pooled.source,
        method=method,
        held_out=held_out,
        layers=chosen,
        num_layers_tried=len(layers),
        accuracy=float((predicted == labels_B[tested]).mean()),
        ids=[pooled.ids[i] for i in tested],
        languages=[pooled.languages[i] for i in tested],
        predictions=[classes[i] for i in predicted],
        speakers=[None if (s := pooled.speakers[i]) in pooled.unknown_speakers else s for i in tested],
        sources=[pooled.sources[i] for i in tested],
        classes=classes,
        scores_BC=scores_BC[tested],
        left_out=len(labels_B) - len(tested),
        why=f"their language has one {held_out} only" + (" of enough speech" if held_out == "source" else ""),
    )


def folds_of(pooled: Pooled, held_out: HeldOut, settings: LidSettings) -> list[tuple[Array, Array]]:
    """Return (train, test) rows of the folds that hold out utterances, speakers or sources; every training has two languages.

    Raises `TooFewLanguagesError` where fewer than two languages are tested: always saying the same would be right.
    """
    folds = _folds(np.arange(len(pooled.ids)), pooled, held_out, settings)
    tested = {pooled.languages[i] for _, test in folds for i in test}
    if len(tested) > 1:
        return folds
    raise TooFewLanguagesError(
        f"language identification with held-out {held_out}s needs two languages with two {held_out}s each; this corpus has "
        f"{_counted(pooled.languages, 'language')} and {_counted(pooled.speakers, 'speaker')} of "
        f"{_counted(pooled.sources, 'source')}" + (f", and all that can be tested is {tested.pop()}" if tested else "")
    )


def choose_layer(pooled: Pooled, train: Array, held_out: HeldOut, settings: LidSettings) -> int:
    """Return the layer that does best in a cross-validation inside the training rows."""
    layers = sorted(pooled.values)
    if len(layers) == 1:
        return layers[0]
    classes = sorted(set(pooled.languages))
    labels_B = np.array([classes.index(language) for language in pooled.languages])
    return _choose_layer(pooled, labels_B, train, layers, "linear", held_out, settings)


def _folds(index: Array, pooled: Pooled, held_out: HeldOut, settings: LidSettings) -> list[tuple[Array, Array]]:
    languages = [pooled.languages[i] for i in index]
    if held_out == "utterance":
        folds = utterance_folds([pooled.ids[i] for i in index], settings.num_folds)
    elif held_out == "speaker":
        folds = speaker_folds(languages, [pooled.speakers[i] for i in index], settings.num_folds)
    else:
        sources = [pooled.sources[i] for i in index]
        folds = source_folds(languages, sources, pooled.seconds_B[index], settings.min_source_seconds)
    return [(index[train], index[test]) for train, test in folds if len({languages[i] for i in train}) > 1]


def _counted(names: Sequence[str], what: str) -> str:
    number = len(set(names))
    return f"{number} {what}{'' if number == 1 else 's'}"


def _choose_layer(
    pooled: Pooled,
    labels_B: Array,
    train: Array,
    layers: Sequence[int],
    method: Method,
    held_out: HeldOut,
    settings: LidSettings,
) -> int:
    """Return the layer with the best accuracy inside a training fold; where it cannot be split by source, by speaker."""
    inner = _folds(train, pooled, held_out, settings) or _folds(train, pooled, "speaker", settings)
    if not inner:
        return layers[-1]
    num_classes = int(labels_B.max()) + 1
    hits = []
    for layer in layers:
        correct = 0
        for fit, dev in inner:
            scores = _classify(pooled.values[layer], labels_B, fit, dev, num_classes, method, settings)
            correct += int((scores.argmax(1) == labels_B[dev]).sum())
        hits.append(correct)
    return layers[int(np.argmax(hits))]


def _classify(
    values_BD: Array,
    labels_B: Array,
    train: Array,
    test: Array,
    num_classes: int,
    method: Method,
    settings: LidSettings,
) -> Array:
    if method == "linear":
        return classify_linear(values_BD[train], labels_B[train], values_BD[test], num_classes, settings.weight_decay)
    return classify_knn(values_BD[train], labels_B[train], values_BD[test], num_classes, settings.neighbours)


def _unit(values_ND: Array) -> Array:
    result: Array = values_ND / np.maximum(np.linalg.norm(values_ND, axis=1, keepdims=True), 1e-12)
    return result
