"""A suite: many recipes on the same recordings, in the same order, for the same seconds of speech, and the same measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from isogloss.benchmark.measure import Measured, System, TestBed, measure
from isogloss.benchmark.prepare import before_and_after
from isogloss.core.config import Config, parse, read_toml, to_toml
from isogloss.core.errors import ConfigError, IsoglossError
from isogloss.core.fields import Positive
from isogloss.core.files import write_whole
from isogloss.core.lookup import nearest
from isogloss.encoders.presets import build_encoder
from isogloss.evaluation.energy import add_records
from isogloss.evaluation.probes import SearchBudget
from isogloss.evaluation.spectral import SpectralSource
from isogloss.evaluation.tables import read_results, write_results
from isogloss.hub.load import load_encoder
from isogloss.objectives.base import build_objective
from isogloss.training.iterations import parse_iteration
from isogloss.training.recipe import RECIPES, Recipe, merge_trees

Progress = Callable[[str, float, float], None]


class Budget(Config):
    """How much of everything, in seconds of audio: of training for each system, and of each measurement."""

    train_seconds: Positive
    phone_seconds: Positive = 1200.0
    abx_seconds: Positive = 300.0
    seconds_per_voice: Positive = 100.0
    num_units: Annotated[int, Field(ge=2)] = 50


class SystemConfig(Config):
    """A name for tables, and what a recipe adds to what all share."""

    name: str
    recipe: dict[str, Any]


class SuiteConfig(Config):
    """What is compared: `shared` is a recipe without encoder, objective and length; `systems` add the rest."""

    budgets: dict[str, Budget]
    shared: dict[str, Any]
    systems: Annotated[tuple[SystemConfig, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Cost:
    """What a run took: of one process, measured by the system from outside."""

    updates: int
    seconds_per_update: float
    peak_gib: float
    parameters: int
    energy: dict[str, Any]


@dataclass
class SystemResult:
    """A system's figures beside its untrained encoder's, or why there are none."""

    name: str
    cost: Cost | None
    measured: Measured
    failure: str = ""


def load_suite(name: str | Path) -> SuiteConfig:
    """Read a suite by its file or by the name of one that comes with isogloss; faults are a `ConfigError`."""
    path = Path(name)
    if not path.is_file():
        known = {p.stem: p for p in sorted((RECIPES / "benchmark").glob("*.toml"))}
        if str(name) not in known:
            raise ConfigError(f"there is no suite `{name}`; {nearest(str(name), list(known))}")
        path = known[str(name)]
    suite = parse(SuiteConfig, read_toml(path), str(path))
    for system in suite.systems:
        parsed(suite, system, str(path))
    return suite


def parsed(suite: SuiteConfig, system: SystemConfig, where: str = "suite") -> Recipe:
    """Return a system's recipe with everything filled in but the corpus and the length."""
    tree = recipe_of(suite, system, next(iter(suite.budgets.values())), Path("corpus"), 1)
    return parse_iteration(tree, f"{where}: {system.name}").recipe


def claim_folder(out: Path, settings: Mapping[str, Any]) -> None:
    """Keep what a folder's figures are of; `ConfigError` where it holds those of other recordings, seconds or another seed."""
    path = out / "suite.json"
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key, value in settings.items() if earlier.get(key) != value]
        if changed:
            raise ConfigError(
                f"{out} holds figures with another {' and '.join(changed)}; choose another folder with `--out`"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(dict(settings)))


def recipe_of(suite: SuiteConfig, system: SystemConfig, budget: Budget, corpus: Path, seed: int) -> dict[str, Any]:
    """Return the tree of a system's recipe."""
    own = {"data": {"path": str(corpus)}, "training": {"hours": budget.train_seconds / 3600, "seed": seed}}
    return merge_trees(merge_trees(suite.shared, system.recipe), own)


def run_system(
    suite: SuiteConfig,
    system: SystemConfig,
    budget: Budget,
    corpus: Path,
    bed: TestBed,
    out: Path,
    *,
    seed: int,
    progress: Progress,
) -> SystemResult:
    """Train a system in a process of its own, then measure it; what an earlier run in `out` finished is taken up."""
    run_dir = out / "runs" / slug(system.name)
    tree = recipe_of(suite, system, budget, corpus, seed)
    failure = _train(tree, run_dir)
    if failure:
        return SystemResult(system.name, None, Measured(), failure)
    cost = Cost(**json.loads((run_dir / "cost.json").read_text(encoding="utf-8")))
    stored = out / "figures" / f"{slug(system.name)}.jsonl"
    if not (stored.exists() and stored.with_suffix(".left_out.json").exists()):
        encoder = parsed(suite, system).encoder
        try:
            pair = before_and_after(
                system.name, encoder, seed, run_dir / "model", bed, out / "features", cost.energy, progress
            )
            measured = measure(
                [System(SpectralSource("mel"), "baseline"), *pair],
                bed,
                budget=SearchBudget(weight_decays=(1e-3,)),
                num_units=budget.num_units,
                tell=lambda text: progress(f"{system.name}: {text}", 0, 1),
            )
        except IsoglossError as error:
            return SystemResult(system.name, cost, Measured(), str(error))
        stored.parent.mkdir(parents=True, exist_ok=True)
        write_whole(stored.with_suffix(".layers.json"), json.dumps(measured.layers))
        write_whole(stored.with_suffix(".left_out.json"), json.dumps(measured.left_out))
        write_results(stored, [*measured.records, *measured.differences])
    return SystemResult(system.name, cost, _read(stored))


def slug(name: str) -> str:
    """Return a name as a folder."""
    return name.lower().replace(" ", "-").replace(".", "")


def _read(stored: Path) -> Measured:
    records = read_results(stored)
    layers = json.loads(stored.with_suffix(".layers.json").read_text(encoding="utf-8"))
    return Measured(
        records=[record for record in records if " − " not in record.system],
        differences=[record for record in records if " − " in record.system],
        layers={name: {int(layer): value for layer, value in own.items()} for name, own in layers.items()},
        left_out=json.loads(stored.with_suffix(".left_out.json").read_text(encoding="utf-8")),
    )


def _train(tree: Mapping[str, Any], run_dir: Path) -> str:
    """Train; return the last line of a run that failed, "" of one that did not."""
    recipe, text = run_dir / "recipe.toml", to_toml(tree)
    if recipe.exists() and recipe.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{run_dir} was trained by another recipe; choose another folder with `--out`")
    if (run_dir / "cost.json").exists():
        return ""
    run_dir.mkdir(parents=True, exist_ok=True)
    recipe.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "isogloss", "pretrain", str(recipe), "--out", str(run_dir)]
    with (run_dir / "output.txt").open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = (run_dir / "output.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"exit code {process.returncode}: {lines[-1] if lines else 'nothing was said'}"
    updates = [row for row in _log(run_dir) if row["event"] == "update"]
    energy = [json.loads(line) for line in (run_dir / "energy.jsonl").read_text(encoding="utf-8").splitlines()]
    cost = Cost(
        updates=updates[-1]["step"],
        seconds_per_update=updates[-1]["elapsed"] / updates[-1]["step"],
        peak_gib=usage.ru_maxrss / 2**20,
        parameters=sum(p.numel() for p in load_encoder(run_dir / "model").parameters()),
        energy=add_records(energy),
    )
    write_whole(run_dir / "cost.json", json.dumps(asdict(cost)))
    return ""


def _log(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def curves(run_dir: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return every logged metric of a run: name → (updates, values); "loss" is the loss per target."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for row in _log(run_dir):
        if row["event"] == "update":
            for name, value in {"loss": row["loss"], **row["metrics"]}.items():
                if value is not None:
                    x, y = series.setdefault(name, ([], []))
                    x.append(row["step"])
                    y.append(value)
    return series


def watched_metrics(suite: SuiteConfig) -> dict[str, list[str]]:
    """Return the metrics that the watchdog reads of each system, in its objective's order."""
    watched = {}
    for system in suite.systems:
        recipe = parsed(suite, system)
        objective = build_objective(recipe.objective, build_encoder(recipe.encoder))
        watched[system.name] = list(dict.fromkeys(watch.metric for watch in objective.watches))
    return watched
