"""Measure several systems on the same recordings: phones, ABX and languages, each figure with its interval, paired differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from isogloss.core.errors import DataError
from isogloss.evaluation import abx as abx_module
from isogloss.evaluation.bootstrap import Estimate, paired_difference, ratio_of_sums
from isogloss.evaluation.features import FeatureSource, frame_centers
from isogloss.evaluation.labels import Inventory, alignment_items, alignment_kind, frame_labels
from isogloss.evaluation.lid import (
    HeldOut,
    LidResult,
    LidSettings,
    TooFewLanguagesError,
    language_of,
    pool,
    probe_language,
)
from isogloss.evaluation.normalized import NormalizedSource
from isogloss.evaluation.probes import (
    PhoneProbe,
    ProbeSplits,
    SearchBudget,
    best_on_dev,
    known_speaker,
    probe_phones,
)
from isogloss.evaluation.tables import Labels, ResultRecord
from isogloss.evaluation.units import kmeans, unit_quality

Array = npt.NDArray[np.float64]
Role = Literal["baseline", "untrained", "trained"]
Progress = Callable[[str], None]
UNIT_FRAMES = 20_000  # that units are fitted to


@dataclass(frozen=True)
class System:
    """One thing that is measured; `against` names the systems whose paired differences are wanted."""

    source: FeatureSource
    role: Role
    against: tuple[str, ...] = ()
    energy: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.source.name


@dataclass(frozen=True)
class TestBed:
    """The recordings of a measurement.

    `phones` has the splits of the phone probe, test speakers or sources held out. `abx_within` and `abx_across` are cuts with alignments
    (comparing across speakers needs two in a language; where only one is held out, the other is a voice of the training part).
    `languages` are cuts for language identification, of which those of `held_out_speakers` are tested: trained on other
    utterances of all voices, and trained on other sources (or speakers, as `held_out` says).
    """

    dataset: str
    phones: ProbeSplits
    abx_within: Sequence[Any]
    abx_across: Sequence[Any]
    languages: Sequence[Any]
    held_out: Literal["source", "speaker"]
    held_out_speakers: frozenset[str]
    synthetic_speech: bool
    seeds: tuple[int, ...]


@dataclass
class Measured:
    """Every figure, the paired differences, phone accuracy by system and layer, and what could not be measured."""

    records: list[ResultRecord] = field(default_factory=list)
    differences: list[ResultRecord] = field(default_factory=list)
    layers: dict[str, dict[int, float]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # one sentence each


def measure(
    systems: Sequence[System],
    bed: TestBed,
    *,
    budget: SearchBudget | None = None,
    lid: LidSettings | None = None,
    num_units: int | None = None,
    tell: Progress | None = None,
) -> Measured:
    """Measure every system on a test bed; with `num_units` also how much so many k-means units tell of the phones (PNMI).

    For phones and ABX every system's features are normalised over each recording, as those of log-mel and MFCC are anyway: the
    test voices were recorded elsewhere. The layer of a system is chosen by the phone probe's development accuracy, and ABX is
    measured on that layer; language identification chooses its own inside each training fold. Nothing is chosen on test data.
    """
    tell = tell or (lambda text: None)
    budget = budget or SearchBudget()
    measured = Measured()
    phones: dict[str, PhoneProbe] = {}
    for system in systems:
        tell(f"phone probe: {system.name}")
        results = probe_phones(NormalizedSource(system.source), bed.phones, budget=budget)
        measured.layers[system.name] = {result.layer: result.accuracy for result in results}
        phones[system.name] = best_on_dev(results)
    layer_of = {name: probe.layer for name, probe in phones.items()}
    labels = alignment_kind(bed.phones.test)
    task = _Task(measured, bed, "phones", "accuracy", True, labels, layer_of, len(budget.weight_decays))
    _add_counts(task, systems, {name: _phone_counts(probe) for name, probe in phones.items()})
    parts: tuple[tuple[abx_module.Speaker, Sequence[Any]], ...] = (
        ("within", bed.abx_within),
        ("across", bed.abx_across),
    )
    for speaker, cuts in parts:
        tell(f"ABX, {speaker} speaker")
        task = _Task(measured, bed, f"ABX, {speaker} speaker", "abx_error", False, labels, layer_of)
        _add_abx(task, systems, speaker, cuts)
    if num_units is not None:
        tell("units")
        _add_units(_Task(measured, bed, "units", "pnmi", True, labels, layer_of), systems, num_units)
    tell("language identification")
    pooled = {system.name: pool(system.source, bed.languages, lid) for system in systems}
    ways: tuple[HeldOut, ...] = ("utterance", bed.held_out)
    for held_out in ways:
        try:
            languages = {
                name: probe_language(own, method="linear", held_out=held_out, settings=lid)
                for name, own in pooled.items()
            }
        except TooFewLanguagesError as error:  # it has to do with the corpus alone, so no system has the figure
            measured.left_out.append(str(error))
            continue
        layers = {name: result.layers[0] for name, result in languages.items()}
        task = _Task(measured, bed, f"languages, {held_out}s held out", "accuracy", True, "gold", layers)
        _add_counts(task, systems, {name: _language_counts(result, bed) for name, result in languages.items()})
    return measured


@dataclass(frozen=True)
class _Task:
    """What the records of one task share, and where they go."""

    measured: Measured
    bed: TestBed
    name: str
    metric: str
    higher_is_better: bool
    labels: Labels
    layer_of: Mapping[str, int]
    search_budget: int = 1

    def add(self, estimate: Estimate, system: System, minus: str | None = None) -> None:
        """Add the figure of a system, or its difference from another."""
        record = ResultRecord.from_estimate(
            estimate,
            system=f"{system.name} − {minus}" if minus else system.name,
            task=self.name,
            dataset=self.bed.dataset,
            metric=self.metric,
            higher_is_better=self.higher_is_better,
            labels=self.labels,
            synthetic_speech=self.bed.synthetic_speech,
            seeds=self.bed.seeds,
            search_budget=self.search_budget,
            energy=None if minus else system.energy,
            meta={"layer": self.layer_of[system.name]},
        )
        (self.measured.differences if minus else self.measured.records).append(record)


@dataclass(frozen=True)
class _Counts:
    """Correct and all, by utterance."""

    ids: list[str]
    speakers: list[str | None]
    counts_B2: Array


def _phone_counts(probe: PhoneProbe) -> _Counts:
    counts = np.stack([np.asarray(probe.correct_B, float), np.asarray(probe.total_B, float)], axis=1)
    return _Counts(probe.ids, probe.speakers, counts)


def _language_counts(result: LidResult, bed: TestBed) -> _Counts:
    """Count the utterances of held-out voices only: the others' audio was pretrained on."""
    kept = [i for i, speaker in enumerate(result.speakers) if speaker in bed.held_out_speakers]
    if not kept:
        raise DataError("no utterance of a held-out voice could be tested for its language")
    correct = np.array([result.languages[i] == result.predictions[i] for i in kept], float)
    return _Counts(
        [result.ids[i] for i in kept],
        [result.speakers[i] for i in kept],
        np.stack([correct, np.ones(len(kept))], axis=1),
    )


def _ratio(sums_R2: Array) -> Array:
    return sums_R2[:, 0] / np.maximum(sums_R2[:, 1], 1)


def _add_counts(task: _Task, systems: Sequence[System], counts: Mapping[str, _Counts]) -> None:
    """Add an accuracy, and its paired differences on the utterances that both systems could be tested on."""
    for system in systems:
        own = counts[system.name]
        task.add(ratio_of_sums(own.counts_B2[:, 0], own.counts_B2[:, 1], clusters=own.speakers), system)
        for other_name in system.against:
            other = counts[other_name]
            position = {name: i for i, name in enumerate(other.ids)}
            mine = [i for i, name in enumerate(own.ids) if name in position]
            theirs = [position[own.ids[i]] for i in mine]
            difference = paired_difference(
                own.counts_B2[mine], other.counts_B2[theirs], _ratio, clusters=[own.speakers[i] for i in mine]
            )
            task.add(difference, system, other_name)


def _add_abx(task: _Task, systems: Sequence[System], speaker: abx_module.Speaker, cuts: Sequence[Any]) -> None:
    """Add ABX errors; phones are told apart within a language only, since every speaker here speaks one."""
    features = {
        s.name: {cut.id: NormalizedSource(s.source).features(cut)[task.layer_of[s.name]] for cut in cuts}
        for s in systems
    }
    language = {cut.id: language_of(cut) for cut in cuts}
    items = [i._replace(phone=f"{language[i.id]}:{i.phone}") for i in abx_module.items_from_cuts(cuts)]
    items = abx_module.common_items(
        items, [(features[s.name], s.source.frame_rate_hz, s.source.first_center_seconds) for s in systems]
    )
    results = {
        system.name: abx_module.abx(
            items,
            features[system.name],
            frame_rate_hz=system.source.frame_rate_hz,
            first_center_seconds=system.source.first_center_seconds,
            speaker=speaker,
            context="any",
        )
        for system in systems
    }
    for system in systems:
        task.add(results[system.name].error, system)
        for other in system.against:
            task.add(abx_module.paired_difference(results[system.name], results[other]), system, other)


def _add_units(task: _Task, systems: Sequence[System], num_units: int) -> None:
    """Add the PNMI of units that are fitted to the probe's training frames and read off its test frames."""
    splits = task.bed.phones
    inventory = Inventory.of([item.symbol for item in alignment_items(cut)] for cut in splits.train)
    for system in systems:
        source, layer = NormalizedSource(system.source), task.layer_of[system.name]
        frames_ND = np.concatenate([source.features(cut)[layer] for cut in splits.train]).astype(np.float32)
        kept = np.random.default_rng(task.bed.seeds[0]).permutation(len(frames_ND))[:UNIT_FRAMES]
        book = kmeans(frames_ND[kept], num_units, seed=task.bed.seeds[0], iterations=30)
        tested = [source.features(cut)[layer] for cut in splits.test]
        quality = unit_quality(
            [book.assign(values_SD) for values_SD in tested],
            [
                frame_labels(cut, frame_centers(source, len(values_SD)), inventory)
                for cut, values_SD in zip(splits.test, tested, strict=True)
            ],
            speakers=[known_speaker(cut) for cut in splits.test],
        )
        task.add(quality.pnmi, system)
