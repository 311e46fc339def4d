"""Negative controls on real speech: four objectives as they are and without what keeps them alive, in the same loop.

    python benchmarks/controls.py --data CORPUS --out RUN [--only wav2vec2 ...] [--seed 1]

CORPUS is in any form that isogloss opens. The two arms of a control share recordings, order, rate and seed, and differ in one
setting. The loop and the watchdog are those of `isogloss pretrain`. An arm that has ended, or was stopped, is found in RUN and
not run again; one that was interrupted goes on. The table is printed and written to RUN/controls.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isogloss.core.errors import TrainingError
from isogloss.encoders.presets import build_encoder
from isogloss.objectives.base import build_objective
from isogloss.training.loop import train
from isogloss.training.recipe import merge_trees, parse_recipe

SHARED: dict[str, Any] = {
    "data": {
        "group_by": "speaker",
        "seconds_per_update": 6.0,
        "micro_batch_seconds": 6.0,
        "min_seconds": 1.0,
        "max_seconds": 4.0,
        "long": "windows",
        "num_workers": 0,
    },
    "optim": {"lr": 1e-3, "clip": 1.0},
    "schedule": {"warmup": 0.1},
    "training": {"updates": 400, "threads": 1, "checkpoint_every": 1_000_000},
}
WAVE = {"preset": "wave-tiny", "dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0}
SHOWN = (0.02, 0.25, 0.5, 0.75, 1.0)  # of the run


@dataclass(frozen=True)
class Control:
    """An objective's recipe, what is taken away, and the metrics that should show it."""

    title: str
    recipe: dict[str, Any]
    without: dict[str, Any]
    metrics: tuple[str, ...]


CONTROLS = {
    "wav2vec2": Control(
        "wav2vec 2.0 without diversity",
        {
            "encoder": {**WAVE, "feature_gradient_scale": 1.0},
            "objective": {
                "name": "wav2vec2",
                "num_codes": 64,
                "target_width": 128,
                "final_width": 128,
                "num_negatives": 50,
                "feature_penalty": 0.0,
                "feature_dropout": 0.0,
            },
            "optim": {"lr": 5e-3},
        },
        {"objective": {"diversity_weight": 0.0}},
        ("probability_perplexity", "contrastive_loss"),
    ),
    "w2v_bert": Control(
        "w2v-BERT without the contrastive term",
        {
            "encoder": {"preset": "conformer-tiny", "subsampling": "conv", "conv_channels": [32, 16]},
            "objective": {
                "name": "w2v_bert",
                "contrastive_layer": 1,
                "num_codes": 64,
                "target_width": 128,
                "final_width": 128,
                "num_negatives": 50,
            },
            "optim": {"lr": 5e-3},
        },
        {"objective": {"contrastive_weight": 0.0}},
        ("code_entropy_share", "majority_share", "prediction_loss", "contrastive_loss"),
    ),
    "best_rq": Control(
        "BEST-RQ without normalisation",
        {
            "encoder": {"preset": "conformer-tiny"},
            "objective": {"name": "best_rq", "num_codes": 256, "start_probability": 0.02, "mask_span": 20},
            "data": {"seconds_per_update": 48.0, "micro_batch_seconds": 48.0},
            "training": {"updates": 100},
        },
        {"encoder": {"normalization": "none"}},
        ("code_entropy_share", "prediction_loss"),
    ),
    "data2vec": Control(
        "data2vec without EMA",
        {
            "encoder": WAVE,
            "objective": {"name": "data2vec", "top_layers": 2, "decay_start": 0.99, "decay_end": 0.999},
            "data": {"seconds_per_update": 3.0, "micro_batch_seconds": 3.0, "max_seconds": 2.0},
            "optim": {"lr": 5e-3},
        },
        {"objective": {"decay_start": 0.0, "decay_end": 0.0}},
        ("target_rank", "fvu", "target_std", "prediction_std"),
    ),
}


@dataclass(frozen=True)
class Arm:
    """What a run said: its metrics by update, the warnings, and why it was stopped ("" where it was not)."""

    metrics: list[tuple[int, dict[str, float | None]]]
    warnings: list[str]
    stopped: str


def run_arm(recipe: Mapping[str, Any], folder: Path) -> Arm:
    """Train, or take up what is there."""
    ended = folder / "ended.json"
    if not ended.exists():
        stopped = ""
        try:
            train(parse_recipe(recipe, str(folder)), folder)
        except TrainingError as error:
            stopped = str(error)
        ended.write_text(json.dumps({"stopped": stopped}), encoding="utf-8")
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return Arm(
        [(row["step"], row["metrics"]) for row in rows if row["event"] == "update"],
        [row["message"] for row in rows if row["event"] == "warning"],
        json.loads(ended.read_text(encoding="utf-8"))["stopped"],
    )


def trajectory(arm: Arm, metric: str, updates: int) -> str:
    """Return the metric at a few updates of the run, as far as it went."""
    values = []
    for share in SHOWN:
        reached = [row for row in arm.metrics if row[0] >= share * updates]
        if reached:
            values.append(_shown(reached[0][1].get(metric)))
    if arm.metrics[-1][0] < updates:
        values.append(f"{_shown(arm.metrics[-1][1].get(metric))} at update {arm.metrics[-1][0]}")
    return ", ".join(values)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def table(arms: Mapping[str, tuple[Arm, Arm]], updates: Mapping[str, int], limits: Mapping[str, str]) -> str:
    """Return what happened as Markdown."""
    marks = ", ".join(f"{share:.0%}" for share in SHOWN)
    lines = [f"Metrics are means of ten updates, at {marks} of the run.", ""]
    lines += ["| control | metric (healthy) | with | without |", "|---|---|---|---|"]
    for name, (healthy, crippled) in arms.items():
        for metric in CONTROLS[name].metrics:
            both = (trajectory(arm, metric, updates[name]) for arm in (healthy, crippled))
            lines.append(f"| {CONTROLS[name].title} | `{metric}` ({limits[f'{name}/{metric}']}) | {' | '.join(both)} |")
    lines += ["", "| control | the watchdog, with | the watchdog, without |", "|---|---|---|"]
    for name, both_arms in arms.items():
        lines.append(f"| {CONTROLS[name].title} | {' | '.join(said(arm) for arm in both_arms)} |")
    return "\n".join(lines) + "\n"


def said(arm: Arm) -> str:
    """Return the watchdog's words."""
    return "; ".join([*arm.warnings, *([arm.stopped] if arm.stopped else [])]) or "silent"


def watch_limits(recipe: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return the bounds of the metrics that the objective watches."""
    parsed = parse_recipe(recipe, name)
    objective = build_objective(parsed.objective, build_encoder(parsed.encoder))
    limits = dict.fromkeys((f"{name}/{metric}" for metric in CONTROLS[name].metrics), "not watched")
    for watch in objective.watches:
        low = "" if watch.low is None else f"> {watch.low:.3g}"
        high = "" if watch.high is None else f"< {watch.high:.3g}"
        limits[f"{name}/{watch.metric}"] = " and ".join(bound for bound in (low, high) if bound)
    return limits


def main(argv: Sequence[str] | None = None) -> None:
    """Run the controls that are asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="a corpus, in any form that isogloss opens")
    parser.add_argument("--out", required=True, type=Path, help="a folder for runs and table")
    parser.add_argument("--only", nargs="+", choices=list(CONTROLS), default=list(CONTROLS), help="these controls")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    arms: dict[str, tuple[Arm, Arm]] = {}
    updates: dict[str, int] = {}
    limits: dict[str, str] = {}
    for name in options.only:
        control = CONTROLS[name]
        own = {"data": {"path": str(options.data)}, "training": {"seed": options.seed}}
        # `updates` is a length, of which a tree that is merged in replaces the old one only where it says one itself.
        healthy = merge_trees(merge_trees(SHARED, control.recipe), own)
        crippled = merge_trees(healthy, control.without)
        arms[name] = (
            run_arm(healthy, options.out / name / "with"),
            run_arm(crippled, options.out / name / "without"),
        )
        updates[name] = healthy["training"]["updates"]
        limits |= watch_limits(healthy, name)
        (options.out / "controls.md").write_text(table(arms, updates, limits), encoding="utf-8")
    print(table(arms, updates, limits))


if __name__ == "__main__":
    main()
