"""The whole chain in minutes: speech, audit, labels, three objectives from one seed, measures, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from isogloss.benchmark.measure import Measured, System, measure
from isogloss.benchmark.prepare import BedSizes, before_and_after, prepare_bed
from isogloss.benchmark.testbed import Division
from isogloss.core.errors import DataError
from isogloss.core.wording import counted
from isogloss.data.audit import AuditReport, audit
from isogloss.data.corpora import debian, synthetic
from isogloss.data.inputs import open_corpus
from isogloss.evaluation.energy import EnergyMeter
from isogloss.evaluation.lid import LidSettings, language_of
from isogloss.evaluation.probes import SearchBudget, speaker_of
from isogloss.evaluation.spectral import SpectralSource
from isogloss.evaluation.tables import write_results
from isogloss.training.loop import TrainResult, train
from isogloss.training.recipe import Recipe, load_recipe

Speech = Literal["auto", "real", "synthetic"]
OBJECTIVES = {"modified CPC": "demo/modified-cpc", "wav2vec 2.0": "demo/wav2vec2", "BEST-RQ": "demo/best-rq"}
SYNTHETIC_LANGUAGES = ("fr", "es", "it", "ru", "sw", "tr")


@dataclass(frozen=True)
class Size:
    """How much of everything. Seconds are of audio; `overrides` go to both recipes."""

    overrides: tuple[str, ...] = ()
    only_for: dict[str, tuple[str, ...]] | None = None
    bed: BedSizes = field(default_factory=BedSizes)
    synthetic_utterances: int = 60
    synthetic_voices: int = 4
    budget: SearchBudget = field(default_factory=SearchBudget)
    lid: LidSettings = field(default_factory=LidSettings)
    languages: tuple[str, ...] = SYNTHETIC_LANGUAGES
    workers: int = 2


SIZES = {
    # For tests: seconds, and figures that mean nothing.
    "tiny": Size(
        overrides=(
            "training.updates=4",
            "data.seconds_per_update=8",
            "data.micro_batch_seconds=8",
            "data.num_workers=0",
        ),
        only_for={"modified CPC": ("encoder.preset=cpc-tiny",), "wav2vec 2.0": ("encoder.preset=wave-tiny",)},
        bed=BedSizes(phone_seconds=30.0, abx_seconds=20.0, seconds_per_voice=16.0),
        synthetic_utterances=8,
        synthetic_voices=2,
        budget=SearchBudget(weight_decays=(1e-2,), max_iterations=10, max_train_frames=2000),
        lid=LidSettings(min_source_seconds=1.0),
        languages=("fr", "sw"),
        workers=1,
    ),
    "small": Size(),
    "large": Size(
        overrides=("training.updates=8000",),
        bed=BedSizes(phone_seconds=2400.0, abx_seconds=1200.0, seconds_per_voice=400.0),
    ),
}


@dataclass
class Demo:
    """Everything that the report tells."""

    out: Path
    size: str
    seed: int
    synthetic: bool
    why_synthetic: str
    speech: str  # one sentence: what it is and where it comes from
    audit: AuditReport
    division: Division
    recipes: dict[str, Recipe]
    runs: dict[str, TrainResult]
    energy: dict[str, dict[str, Any]]
    measured: Measured
    labels: str  # how the phone labels came about
    seconds: dict[str, float]  # stage → wall time


class Stages:
    """Tells where the demo is, and how long each stage took."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        self._total = total

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[str, float, float], None]]:
        """Announce a stage and yield `progress(what, done, total)`."""
        number = len(self.seconds) + 1
        self.console.print(f"[bold]{number}/{self._total}[/bold] {name}")
        begin = time.perf_counter()
        columns = (TextColumn("    {task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            tasks: dict[str, Any] = {}

            def progress(what: str, done: float, total: float) -> None:
                if what not in tasks:
                    for task in tasks.values():
                        bar.update(task, visible=False)
                    tasks[what] = bar.add_task(what, total=total)
                bar.update(tasks[what], completed=done, total=total)

            yield progress
        self.seconds[name] = time.perf_counter() - begin

    def say(self, text: str) -> None:
        """Print one line under the stage."""
        self.console.print(f"    {text}", highlight=False)


def run_demo(
    out: Path, *, size: str = "small", speech: Speech = "auto", seed: int = 1, console: Console | None = None
) -> Demo:
    """Run the chain in `out` and return what was seen; finished parts of an earlier run are taken up, not done again.

    `speech` "auto" takes Debian's recordings where apt can get them and synthesised speech elsewhere; "real" fails instead.
    Raises `IsoglossError` subclasses.
    """
    sizes = SIZES[size]
    stages = Stages(console or Console(stderr=True), 6)
    out.mkdir(parents=True, exist_ok=True)

    with stages.stage("speech") as progress:
        folder, synthetic_why = _obtain(out, sizes, speech, seed, stages, progress)
        cuts = list(open_corpus(folder))
    is_synthetic = all((cut.custom or {}).get("synthetic") for cut in cuts)

    with stages.stage("audit") as progress:
        report = audit(cuts, progress=lambda done, total: progress("recordings", done, total or len(cuts)))
        cuts = list(report.cuts)
        stages.say(f"{len(cuts)} of {report.num_input} recordings are good")

    with stages.stage("phone labels") as progress:
        dataset = "synthesised speech" if is_synthetic else "Debian recordings"
        prepared = prepare_bed(cuts, out, sizes.bed, dataset=dataset, seed=seed, progress=progress)
        division, bed = prepared.division, prepared.bed
        stages.say(
            f"{_minutes(division.train)} to train on; held out: {_minutes(division.test)} of {len(division.speakers)} voices"
        )
        stages.say(prepared.labels)

    with stages.stage("pretrain"):
        recipes = {name: _recipe(recipe, prepared.corpus, sizes, name, seed) for name, recipe in OBJECTIVES.items()}
        runs, energy = {}, {}
    for name, recipe in recipes.items():
        stages.say(f"{name}: {recipe.training.updates} updates of {recipe.data.seconds_per_update:g} s")
        with EnergyMeter() as meter:
            runs[name] = train(recipe, out / "runs" / _slug(name))
        energy[name] = meter.record()
        stages.seconds["pretrain"] += energy[name]["wall_seconds"]

    with stages.stage("measure") as progress:
        systems = [System(SpectralSource("mel"), "baseline"), System(SpectralSource("mfcc"), "baseline")]
        for name, recipe in recipes.items():
            systems += before_and_after(
                name, recipe.encoder, seed, runs[name].model_dir, bed, out / "features", energy[name], progress
            )
        measured = measure(systems, bed, budget=sizes.budget, lid=sizes.lid, tell=lambda text: progress(text, 0, 1))
        write_results(out / "results.jsonl", [*measured.records, *measured.differences])

    return Demo(
        out=out,
        size=size,
        seed=seed,
        synthetic=is_synthetic,
        why_synthetic=synthetic_why,
        speech=_describe(division, is_synthetic),
        audit=report,
        division=division,
        recipes=recipes,
        runs=runs,
        energy=energy,
        measured=measured,
        labels=prepared.labels,
        seconds=stages.seconds,
    )


def _obtain(
    out: Path, sizes: Size, speech: Speech, seed: int, stages: Stages, progress: Callable[[str, float, float], None]
) -> tuple[Path, str]:
    """Return the folder of the corpus, and why it is synthetic (empty where it is not)."""
    why = "asked for with `--speech synthetic`"
    if speech != "synthetic":
        folder = out / "debian"
        if (folder / "report.json").exists():
            stages.say("taken from an earlier run")
            return folder, ""
        try:
            plan = debian.demo_selection()
            stages.say(plan.describe())
            debian.prepare(
                folder,
                languages=plan.languages,
                packages=[source.package for source in plan.sources],
                progress=progress,
            )
        except DataError as error:
            if speech == "real":
                raise
            why = str(error)
            stages.say(f"no real recordings here ({why}); speech is synthesised instead")
        else:
            return folder, ""
    folder = out / "synthetic"
    if not (folder / "report.json").exists():
        synthetic.synthesize(
            folder,
            languages=list(sizes.languages),
            voices=sizes.synthetic_voices,
            utterances_per_voice=sizes.synthetic_utterances,
            seed=seed,
            channels=("clean", "telephone"),
            workers=sizes.workers,
            progress=progress,
        )
    return folder, why


def _recipe(name: str, corpus: Path, sizes: Size, objective: str, seed: int) -> Recipe:
    overrides = [*sizes.overrides, *(sizes.only_for or {}).get(objective, ())]
    return load_recipe(name, [*overrides, f"data.path={json.dumps(str(corpus))}", f"training.seed={seed}"])


def _describe(division: Division, is_synthetic: bool) -> str:
    cuts = [*division.train, *division.test]
    languages, voices = {language_of(cut) for cut in cuts}, {speaker_of(cut) for cut in cuts}
    kind = "synthesised utterances" if is_synthetic else "human recordings from Debian's archive"
    return f"{_minutes(cuts)} of {kind}: {counted(len(languages), 'language')}, {counted(len(voices), 'voice')}."


def _minutes(cuts: Sequence[Any]) -> str:
    return f"{sum(cut.duration for cut in cuts) / 60:.0f} minutes"


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-").replace(".", "")
