"""From a corpus to a test bed: voices held out, phones labelled, as many seconds of everything as were asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from isogloss.benchmark.measure import System, TestBed
from isogloss.benchmark.testbed import Division, PhoneCuts, divide, language_cuts, phone_cuts, probe_splits, sample
from isogloss.core.rng import derive_seed
from isogloss.data.inputs import open_corpus, write_corpus
from isogloss.encoders.base import Encoder
from isogloss.encoders.presets import EncoderConfig, build_encoder
from isogloss.evaluation.aligner import AlignerSettings
from isogloss.evaluation.features import FeatureSource, extract_features
from isogloss.evaluation.labels import alignment_items
from isogloss.evaluation.silver import align_silver, words_of_text
from isogloss.hub.load import load_encoder

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class BedSizes:
    """Seconds of audio of each measurement, and how the aligner is trained where phone times are missing."""

    phone_seconds: float = 1200.0
    abx_seconds: float = 300.0
    seconds_per_voice: float = 100.0
    aligner: AlignerSettings = field(default_factory=lambda: AlignerSettings(min_updates=800, max_epochs=10))


@dataclass(frozen=True)
class Prepared:
    """What is trained on (`division.train`, written to `corpus`), what is tested on, and how its phone times came about."""

    division: Division
    corpus: Path
    bed: TestBed
    labels: str


def prepare_bed(
    cuts: Sequence[Any], out: Path, sizes: BedSizes, *, dataset: str, seed: int, progress: Progress
) -> Prepared:
    """Hold out voices, write what remains to `out/train`, and label phones; labels of an earlier run are taken up.

    Raises `DataError` where the corpus has too few voices or no texts.
    """
    division = divide(cuts)
    corpus = write_corpus(division.train, out / "train")
    phones, labels = _label(phone_cuts(division, sizes.phone_seconds, seed), out, sizes, progress)
    held_out = sample(phones.test, sizes.abx_seconds, seed)
    bed = TestBed(
        dataset=dataset,
        phones=probe_splits(phones, seed),
        abx_within=held_out,
        abx_across=[*held_out, *sample(phones.train, sizes.abx_seconds, seed)],
        languages=language_cuts(division, sizes.seconds_per_voice, seed),
        held_out=division.held_out,
        held_out_speakers=division.speakers,
        synthetic_speech=all((cut.custom or {}).get("synthetic") for cut in cuts),
        seeds=(seed,),
    )
    return Prepared(division, corpus, bed, labels)


def with_languages(bed: TestBed, cuts: Sequence[Any], seconds_per_voice: float, seed: int) -> TestBed:
    """Return the test bed with language identification on another corpus, of which nothing is pretrained on."""
    division = divide(cuts)
    return replace(
        bed,
        languages=language_cuts(division, seconds_per_voice, seed),
        held_out=division.held_out,
        held_out_speakers=bed.held_out_speakers | division.speakers,
    )


def _label(cuts: PhoneCuts, out: Path, sizes: BedSizes, progress: Progress) -> tuple[PhoneCuts, str]:
    """Return the cuts with phone times, and where the times come from."""
    everything = [*cuts.train, *cuts.test]
    if all(alignment_items(cut) for cut in everything):
        return cuts, "phone times are those that the corpus has"
    # The name says for which cuts: a run of another size in the same folder has others.
    names = "\n".join(sorted(cut.id for cut in everything))
    folder = out / f"phones-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    if not (folder / "cuts.jsonl.gz").exists():
        cuts_with_times, _ = align_silver(
            everything,
            words_of_text,
            settings=sizes.aligner,
            progress=lambda done, total: progress("forced aligner", done, total),
        )
        write_corpus(cuts_with_times, folder)
    aligned = {cut.id: cut for cut in open_corpus(folder)}
    labelled = PhoneCuts(*([aligned[c.id] for c in part if c.id in aligned] for part in (cuts.train, cuts.test)))
    return labelled, (
        f"silver phone labels: espeak-ng's phones of the transcripts, timed by a CTC aligner trained on these {len(aligned)} "
        f"recordings; {len(everything) - len(aligned)} whose text does not fit were left out"
    )


def before_and_after(
    name: str,
    config: EncoderConfig,
    seed: int,
    model: Path,
    bed: TestBed,
    cache: Path,
    energy: Mapping[str, Any],
    progress: Progress,
) -> list[System]:
    """Return an encoder with the very weights that a run of this seed began with, and the one that it ended with."""
    needed = {
        cut.id: cut
        for part in (bed.phones.train, bed.phones.dev, bed.phones.test, bed.abx_across, bed.languages)
        for cut in part
    }

    def features(encoder: Encoder, label: str) -> FeatureSource:
        return extract_features(
            encoder.eval(),
            list(needed.values()),
            cache_dir=cache,
            name=label,
            progress=lambda done, total: progress(f"features: {label}", done, total),
        )

    torch.manual_seed(derive_seed(seed, "weights"))
    untrained = features(build_encoder(config), f"{name}, untrained")
    trained = features(load_encoder(model), name)
    return [System(untrained, "untrained"), System(trained, "trained", (untrained.name, "mel"), energy)]
