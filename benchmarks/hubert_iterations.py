"""HuBERT in two iterations on real speech: what the second one gains, beside as many more updates on the units of MFCC.

    python benchmarks/hubert_iterations.py --data CORPUS --out FOLDER [--recipe benchmarks/hubert_iterations.toml]

Trains the recipe's two iterations, then goes on from the model of the first with its own units and as many updates as the second
has, in another order. Measures all of them and the untrained encoder on voices that no training saw, as `isogloss benchmark` does: phone
probe, ABX, and PNMI of fresh k-means units. What is finished in FOLDER is taken up. The corpus needs voices, languages, and texts
or phone times.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isogloss.benchmark.measure import Measured, System, TestBed, measure
from isogloss.benchmark.prepare import BedSizes, prepare_bed
from isogloss.core.config import read_toml, to_toml
from isogloss.core.rng import derive_seed
from isogloss.data.inputs import open_corpus
from isogloss.data.units import UnitTable
from isogloss.encoders.base import Encoder
from isogloss.encoders.presets import build_encoder
from isogloss.evaluation.features import FeatureSource, extract_features
from isogloss.evaluation.labels import Inventory, alignment_items, frame_labels
from isogloss.evaluation.probes import SearchBudget, speaker_of
from isogloss.evaluation.spectral import SpectralSource
from isogloss.evaluation.tables import ResultRecord, write_results
from isogloss.evaluation.units import UnitQuality, unit_quality
from isogloss.hub.load import load_encoder
from isogloss.nn.filterbank import SAMPLE_RATE
from isogloss.training.recipe import parse_recipe

SIZES = BedSizes(phone_seconds=1200.0, abx_seconds=240.0, seconds_per_voice=6.0)
TASKS = {"phones": 100, "ABX, within speaker": 100, "ABX, across speaker": 100, "units": 1}  # times what


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--seed", type=int, default=1, help="of the test bed")
    args = parser.parse_args()
    tell = lambda what, done, total: print(f"{what} {done:g}/{total:g}", file=sys.stderr)  # noqa: E731
    prepared = prepare_bed(
        list(open_corpus(args.data)), args.out, SIZES, dataset=args.data.name, seed=args.seed, progress=tell
    )
    run, control = args.out / "run", args.out / "continued"
    pretrain(args.recipe, run, "--data", str(prepared.corpus))
    pretrain(continued(run / "1", args.out / "continued.toml"), control, "--from", str(run / "1" / "model"))
    measured = measure(
        systems(run, control, prepared.bed, args.out / "features"),
        prepared.bed,
        budget=SearchBudget(weight_decays=(1e-3,)),
        num_units=50,
        tell=lambda text: print(text, file=sys.stderr),
    )
    write_results(args.out / "results.jsonl", [*measured.records, *measured.differences])
    tables = {
        f"iteration {i}": table_quality(run / str(i) / "units", [*prepared.bed.phones.train, *prepared.bed.phones.dev])
        for i in (1, 2)
    }
    text = report(measured, tables)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


def pretrain(recipe: Path, run: Path, *options: str) -> None:
    command = [sys.executable, "-m", "isogloss", "pretrain", str(recipe), "--out", str(run), *options]
    subprocess.run(command, check=True)


def continued(first: Path, path: Path) -> Path:
    """Write the recipe that goes on from the first iteration on its units: its own settings, utterances in another order."""
    tree = read_toml(first / "config.toml")
    kept = {key: tree[key] for key in ("data", "optim", "schedule", "training")}
    kept["data"] |= {"units": str(first / "units")}
    kept["training"] |= {"seed": tree["training"]["seed"] + 1}
    path.write_text(to_toml(kept), encoding="utf-8")
    return path


def systems(run: Path, control: Path, bed: TestBed, cache: Path) -> list[System]:
    recipe = parse_recipe(read_toml(run / "1" / "config.toml"), str(run))
    torch.manual_seed(derive_seed(recipe.training.seed, "weights"))
    cuts = [*bed.phones.train, *bed.phones.dev, *bed.phones.test, *bed.abx_across, *bed.languages]

    def features(encoder: Encoder, name: str) -> FeatureSource:
        return extract_features(
            encoder.eval(), list({cut.id: cut for cut in cuts}.values()), cache_dir=cache, name=name
        )

    return [
        System(SpectralSource("mel"), "baseline"),
        System(features(build_encoder(recipe.encoder), "untrained"), "untrained"),
        System(features(load_encoder(run / "1" / "model"), "iteration 1"), "trained", ("untrained",)),
        System(
            features(load_encoder(control / "model"), "iteration 1, continued"), "trained", ("untrained", "iteration 1")
        ),
        System(
            features(load_encoder(run / "2" / "model"), "iteration 2"),
            "trained",
            ("untrained", "iteration 1", "iteration 1, continued"),
        ),
    ]


def table_quality(folder: Path, cuts: Sequence[Any]) -> UnitQuality:
    """Return how much the units that were trained on tell of the phones of the voices that were trained on."""
    table = UnitTable(folder)
    inventory = Inventory.of([item.symbol for item in alignment_items(cut)] for cut in cuts)
    units = [table.labels(cut.id).numpy() for cut in cuts]
    phones = [
        frame_labels(cut, (table.first_center + table.hop * np.arange(len(own))) / SAMPLE_RATE, inventory)
        for cut, own in zip(cuts, units, strict=True)
    ]
    return unit_quality(units, phones, speakers=[speaker_of(cut) for cut in cuts])


def report(measured: Measured, tables: dict[str, UnitQuality]) -> str:
    names = list(dict.fromkeys(record.system for record in measured.records))
    differences = list(dict.fromkeys(record.system for record in measured.differences))
    purities = [[f"{value:.3f}" for value in (q.phone_purity.value, q.cluster_purity.value)] for q in tables.values()]
    pnmi = [f"{q.pnmi.value:.3f} [{q.pnmi.low:.3f}, {q.pnmi.high:.3f}]" for q in tables.values()]
    layers = {name: own for name, own in measured.layers.items() if len(own) > 1}
    heads = ["phones % ↑", "ABX, within speaker % ↓", "ABX, across speaker % ↓", "PNMI of 50 new units ↑"]
    parts = [
        [["", "layer", *heads], *(row(name, measured.records) for name in names)],
        [["difference", "layer", *heads[:3]], *(row(name, measured.differences) for name in differences)],
        [
            ["units that were trained on", "PNMI", "phone purity", "cluster purity"],
            *(
                [name, *cells]
                for name, cells in zip(tables, ([a, *b] for a, b in zip(pnmi, purities, strict=True)), strict=True)
            ),
        ],
        [
            ["phones % by layer", *map(str, next(iter(layers.values())))],
            *([name, *(f"{100 * value:.1f}" for value in own.values())] for name, own in layers.items()),
        ],
    ]
    return "\n\n".join(table(part) for part in parts) + "\n"


def table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def row(name: str, records: Sequence[ResultRecord]) -> list[str]:
    own = {record.task: record for record in records if record.system == name}
    sign = "+" if " − " in name else ""
    cells = []
    for task, scale in TASKS.items():
        if task not in own:  # PNMI has no paired difference
            continue
        digits = 1 if scale == 100 else 3
        value, low, high = (scale * x for x in (own[task].value, own[task].low, own[task].high))
        cells.append(f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]")
    return [name, str(own["phones"].meta["layer"]), *cells]


if __name__ == "__main__":
    main()
