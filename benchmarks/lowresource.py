"""Does continued self-supervised training on a language's own audio lower its phone error rate after fine-tuning?

    python benchmarks/lowresource.py --source DIR [--source DIR …] --target NAME=DIR:UNIT [--target …] --out DIR

SAPT (arXiv 2312.07338) for recognition instead of language identification. Corpora are anything that `isogloss` opens; UNIT is what
is recognised (phones of an alignment, characters, ipa). A small Conformer learns BEST-RQ from the sources' audio; then, for each target,

    untrained   the same architecture, never trained
    pretrained  the sources' encoder
    sapt        the same objective continued on the audio of the target's training part, without labels
    source      the same adaptation with the audio of the sources: equally many updates, no target

are fine-tuned by CTC (`isogloss finetune asr`) on the same labelled minutes. The learning rate of fine-tuning is chosen on the
development part for every arm from the same list; that of adaptation by the objective's accuracy on development audio, and
`source` has the same one. Parts are the corpus' own (`split`), or: the voice with the least speech and some texts of the others for
the test, other texts for development.
Every run that is finished is kept in --out and not made again; `--report` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet, MonoCut

from isogloss.adapt.guard import refuse_test_audio
from isogloss.adapt.heldout import heldout_batches, score
from isogloss.core.rng import derive_seed
from isogloss.data.inputs import open_corpus, write_corpus
from isogloss.data.phones import aligned_phones
from isogloss.evaluation.bootstrap import Estimate, hierarchical, paired_difference
from isogloss.evaluation.metrics import ratio
from isogloss.evaluation.tasks import load_task, run_task
from isogloss.evaluation.untrained import untrained_like
from isogloss.hub.load import load_model
from isogloss.hub.save import save_model
from isogloss.objectives.base import build_objective
from isogloss.training.finetune import load_finetune
from isogloss.training.loop import train
from isogloss.training.parallel import Learner
from isogloss.training.recipe import find_recipe, load_recipe, merge_trees, parse_recipe, recipe_tree

ARMS = ("pretrained", "sapt", "source", "untrained")
PRETRAIN = "pretrain/best_rq-field"
AUDIO = (
    "data.seconds_per_update=12",
    "data.micro_batch_seconds=12",
    "data.min_seconds=0.6",
    "data.max_seconds=6",
    "data.num_workers=0",
    "training.threads=1",
)
# All states are mixed and everything learns: the last state alone stays on CTC's plateau of blanks at this size.
LABELLED = (
    "task.layers=weighted",
    "task.mask_probability=0",
    "task.head_only=0",
    "start.frozen=[]",
    "data.seconds_per_update=12",
    "data.micro_batch_seconds=12",
    "data.max_seconds=12",
    "data.num_workers=0",
    "schedule.final_scale=0.2",
    "training.threads=1",
    "training.checkpoint_every=100000",
)
DEV_TEXTS, TEST_TEXTS = 120, 250


@dataclass(frozen=True)
class Target:
    """A language to recognise."""

    name: str
    path: Path
    unit: str

    @property
    def metric(self) -> str:
        """Of the unit."""
        return "cer" if self.unit == "characters" else "per"


@dataclass(frozen=True)
class Plan:
    """Sizes of the experiment, from the command line."""

    out: Path
    sources: tuple[Path, ...]
    pretrain_updates: int
    adapt_updates: int
    finetune_updates: tuple[int, ...]  # for each of `minutes`
    minutes: tuple[float, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    head_rate: float | None
    adapt_rates: tuple[float, ...]
    adapt_seed: int


def main() -> None:
    """Run what is not there yet and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, action="append", required=True)
    parser.add_argument("--target", action="append", required=True, metavar="NAME=DIR:UNIT")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pretrain-updates", type=int, default=3000)
    parser.add_argument("--adapt-updates", type=int, default=400)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10.0, 60.0], help="labelled; as much as there is")
    parser.add_argument("--finetune-updates", type=int, nargs="+", default=[400, 700], help="one for each of --minutes")
    parser.add_argument("--seeds", type=int, default=3, help="of fine-tuning: order of the audio, head, masks")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3], help="learning rates of fine-tuning")
    parser.add_argument("--head-rate", type=float, help="learning rate of the new head; that of the encoder by default")
    parser.add_argument("--adapt-rates", type=float, nargs="+", default=[3e-4, 1e-3])
    parser.add_argument("--adapt-seed", type=int, default=1, help="of adaptation: order of the audio, masks")
    parser.add_argument("--report", action="store_true", help="print what is there and run nothing")
    options = parser.parse_args()
    if len(options.minutes) != len(options.finetune_updates):
        parser.error("--finetune-updates needs a number for each of --minutes")
    plan = Plan(
        options.out,
        tuple(options.source),
        options.pretrain_updates,
        options.adapt_updates,
        tuple(options.finetune_updates),
        tuple(options.minutes),
        tuple(range(1, options.seeds + 1)),
        tuple(options.rates),
        options.head_rate,
        tuple(options.adapt_rates),
        options.adapt_seed,
    )
    targets = [parsed(text) for text in options.target]
    if not options.report:
        # The cheap size of every target first: what is there when time runs out is whole tables.
        for size in range(len(plan.minutes)):
            for target in targets:
                for seed in plan.seeds:
                    for arm in ARMS:
                        rate = best_rate(plan, target, arm, size)
                        finetuned(plan, target, start(plan, target, arm), size, rate, seed)
                (plan.out / "results.md").write_text(markdown(plan, targets))
    print(markdown(plan, targets))


def parsed(text: str) -> Target:
    """Read NAME=DIR:UNIT."""
    name, rest = text.split("=", 1)
    path, unit = rest.rsplit(":", 1)
    return Target(name, Path(path), unit)


def source_corpus(plan: Plan) -> Path:
    """Return the sources as one corpus."""
    place = plan.out / "corpora" / "source"
    if not (place / "cuts.jsonl.gz").exists():
        cuts = [cut for path in plan.sources for cut in open_corpus(path) if cut.duration >= 0.6]
        write_corpus(CutSet.from_cuts(cuts), place)
    return place


def parts(plan: Plan, target: Target) -> dict[str, Path]:
    """Return the corpora of a target: `unlabelled` (all training audio), `dev`, `test`, and the labelled minutes."""
    folder = plan.out / "corpora" / target.name
    sizes = {f"labelled-{minutes:g}": minutes for minutes in plan.minutes}
    places = {name: folder / name for name in ("unlabelled", "dev", "test", *sizes)}
    if all((place / "cuts.jsonl.gz").exists() for place in places.values()):
        return places
    cuts = sorted(open_corpus(target.path), key=lambda cut: derive_seed("low resource", cut.id))
    divided = given(cuts) or by_voice_and_text(cuts)
    divided = {name: divided[name] if name == "unlabelled" else told(divided[name], target) for name in divided}
    for name in ("dev", "test"):
        refuse_test_audio(divided["unlabelled"], divided[name], name)
    for name, minutes in sizes.items():
        divided[name] = first_minutes(told(divided["unlabelled"], target), minutes)
    for name, place in places.items():
        write_corpus(CutSet.from_cuts(divided[name]), place)
    return places


def given(cuts: Sequence[MonoCut]) -> dict[str, list[MonoCut]] | None:
    """Return the corpus' own parts, None where it has none; texts of dev and test are not in training."""
    named = {
        split: [cut for cut in cuts if (cut.custom or {}).get("split") == split] for split in ("train", "dev", "test")
    }
    if not all(named.values()):
        return None
    tested = {text(cut) for split in ("dev", "test") for cut in named[split]}
    return {
        "unlabelled": [cut for cut in named["train"] if text(cut) not in tested],
        "dev": named["dev"],
        "test": named["test"],
    }


def by_voice_and_text(cuts: Sequence[MonoCut]) -> dict[str, list[MonoCut]]:
    """Hold out the voice with the least speech, and texts of the others: whoever said them."""
    seconds: dict[str, float] = {}
    for cut in cuts:
        seconds[voice(cut)] = seconds.get(voice(cut), 0.0) + cut.duration
    unseen = min(seconds, key=lambda name: seconds[name])
    others = [cut for cut in cuts if voice(cut) != unseen]
    texts = list(dict.fromkeys(text(cut) for cut in others))
    dev, test = set(texts[:DEV_TEXTS]), set(texts[DEV_TEXTS : DEV_TEXTS + TEST_TEXTS])
    spoken = {text(cut) for cut in cuts if voice(cut) == unseen}
    return {
        "unlabelled": [cut for cut in others if text(cut) not in dev | test | spoken],
        "dev": [cut for cut in others if text(cut) in dev - spoken],
        "test": [cut for cut in cuts if voice(cut) == unseen or text(cut) in test],
    }


def told(cuts: Iterable[MonoCut], target: Target) -> list[MonoCut]:
    """Return the cuts that have labels of the target's unit."""
    return [cut for cut in cuts if (aligned_phones(cut) if target.unit == "phones" else text(cut))]


def first_minutes(cuts: Iterable[MonoCut], minutes: float) -> list[MonoCut]:
    """Return cuts, which lie in random order, until there are so many minutes: of ten minutes all are in the sixty."""
    chosen: list[MonoCut] = []
    seconds = 0.0
    for cut in cuts:
        if seconds >= 60 * minutes:
            break
        chosen.append(cut)
        seconds += cut.duration
    return chosen


def pretrained(plan: Plan) -> Path:
    """Return the encoder of the sources."""
    run = plan.out / "runs" / "pretrain-s1"
    if not (run / "model").exists():
        corpus = source_corpus(plan)
        say(f"pretraining, {plan.pretrain_updates} updates")
        own = [f"data.path={json.dumps(str(corpus))}", f"training.updates={plan.pretrain_updates}", "training.seed=1"]
        train(load_recipe(PRETRAIN, [*AUDIO, *own, "training.checkpoint_every=500"]), run)
    return run / "model"


def untrained(plan: Plan) -> Path:
    """Return the architecture with fresh weights."""
    folder = plan.out / "runs" / "untrained" / "model"
    if not folder.exists():
        save_model(folder, untrained_like(load_model(pretrained(plan)).encoder, seed=1), None, {})
    return folder


def adapted(plan: Plan, target: Target, audio: str, rate: float) -> Path:
    """Return the pretrained encoder after continued training on target or source audio.

    As `isogloss adapt --method continued`, without its early stop, which would give the arms different numbers of updates.
    """
    # The sources' audio is the same whatever the target is.
    name = f"sapt-{target.name}" if audio == "sapt" else "source"
    run = plan.out / "runs" / f"{name}-lr{rate:g}{'' if plan.adapt_seed == 1 else f'-s{plan.adapt_seed}'}"
    if not (run / "model").exists():
        model = pretrained(plan)
        corpus = parts(plan, target)["unlabelled"] if audio == "sapt" else source_corpus(plan)
        say(f"adapting: {name}, learning rate {rate:g}")
        tree = recipe_tree(find_recipe("adapt/continued"), [*AUDIO, f"training.updates={plan.adapt_updates}"])
        tree = {name: section for name, section in tree.items() if name not in ("method", "adapt")}
        tree = merge_trees(tree, {"start": {"model": str(model), "frozen": []}, "data": {"path": str(corpus)}})
        train(
            parse_recipe(merge_trees(tree, {"optim": {"lr": rate}, "training": {"seed": plan.adapt_seed}}), "sapt"), run
        )
    return run / "model"


def masked_accuracy(plan: Plan, model: Path, corpus: Path) -> float:
    """Return the objective's accuracy on two minutes of a corpus."""
    file = model.parent / f"masked-{corpus.parent.name}-{corpus.name}.json"
    if not file.exists():
        loaded = load_model(model)
        assert loaded.objective_tree is not None
        objective = build_objective(loaded.objective_tree, loaded.encoder)
        objective.take_heads(loaded.head_tensors)
        learner = Learner(loaded.encoder, objective)
        recipe = load_recipe(PRETRAIN, [f"data.path={json.dumps(str(corpus))}", *AUDIO])
        means = score(learner, heldout_batches(recipe, corpus, learner, max_seconds=120.0)).means()
        file.write_text(json.dumps(means["accuracy"]))
    return float(json.loads(file.read_text()))


def start(plan: Plan, target: Target, arm: str, rate: float | None = None) -> Path:
    """Return the model that an arm fine-tunes; without a rate that of the best adaptation."""
    if arm == "untrained":
        return untrained(plan)
    if arm == "pretrained":
        return pretrained(plan)
    return adapted(plan, target, arm, best_adapt_rate(plan, target) if rate is None else rate)


def best_adapt_rate(plan: Plan, target: Target) -> float:
    """Return the rate of adaptation after which the objective does best on the target's development audio: no label is used."""
    dev = parts(plan, target)["dev"]
    figures = {rate: masked_accuracy(plan, adapted(plan, target, "sapt", rate), dev) for rate in plan.adapt_rates}
    return max(figures, key=lambda rate: figures[rate])


def best_rate(plan: Plan, target: Target, arm: str, size: int) -> float:
    """Return the learning rate of fine-tuning with the lowest error on the development part, of the first seed."""
    model = start(plan, target, arm)
    figures = {rate: dev_error(finetuned(plan, target, model, size, rate, plan.seeds[0])) for rate in plan.rates}
    return min(figures, key=lambda rate: figures[rate])


def run_of(plan: Plan, target: Target, model: Path, size: int, rate: float, seed: int) -> Path:
    """Return the folder of a fine-tuning."""
    return (
        plan.out
        / "runs"
        / f"{target.name}-{target.unit}-{plan.minutes[size]:g}"
        / f"{model.parent.name}-ft{rate:g}{'' if plan.head_rate is None else f'-head{plan.head_rate:g}'}-s{seed}"
    )


def finetuned(plan: Plan, target: Target, model: Path, size: int, rate: float, seed: int) -> dict[str, Any]:
    """Return errors and symbols of every utterance of dev and test."""
    run = run_of(plan, target, model, size, rate, seed)
    file = run / "counts.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    corpora = parts(plan, target)
    began = time.process_time()
    own = [
        f"start.model={json.dumps(str(model))}",
        f"data.path={json.dumps(str(corpora[f'labelled-{plan.minutes[size]:g}']))}",
        f"task.labels.unit={target.unit}",
        f"optim.lr={rate}",
        f"optim.head_lr={rate if plan.head_rate is None else plan.head_rate}",
        f"training.updates={plan.finetune_updates[size]}",
        f"training.seed={seed}",
    ]
    train(load_finetune("asr", [*LABELLED, *own]), run)
    torch.set_num_threads(1)
    encoder, task = load_task(run / "model")
    result: dict[str, Any] = {}
    for part in ("dev", "test"):
        cuts = list(open_corpus(corpora[part]))
        answer = run_task(encoder, task, cuts)
        counts = task.counts([str(reference) for reference in answer.references], answer.predictions)[target.metric]
        result[part] = {
            "counts": counts.tolist(),
            "voices": [voice(cut) for cut in cuts],
            "texts": [text(cut) for cut in cuts],
        }
        result[part]["said"] = answer.predictions
    result["processor seconds"] = time.process_time() - began
    file.write_text(json.dumps(result, ensure_ascii=False))
    say(f"{run.parent.name} {run.name}: dev {100 * dev_error(result):.1f}, {result['processor seconds']:.0f} s")
    return result


def dev_error(result: Mapping[str, Any]) -> float:
    """Return the error rate on the development part."""
    errors, symbols = np.asarray(result["dev"]["counts"]).sum(0)
    return float(errors / symbols)


def markdown(plan: Plan, targets: Sequence[Target]) -> str:
    """Return the tables of what is there."""
    lines = []
    for size, minutes in enumerate(plan.minutes):
        for target in targets:
            lines += table(plan, target, size, minutes)
    return "\n".join(lines)


def table(plan: Plan, target: Target, size: int, minutes: float) -> list[str]:
    """Return the lines of a target and size: every arm, and its paired difference from `pretrained`."""
    rows = {arm: row for arm in ARMS if (row := runs_of_arm(plan, target, arm, size)) is not None}
    if "pretrained" not in rows:
        return []
    places = parts(plan, target)
    amounts = {name: sum(cut.duration for cut in open_corpus(place)) / 60 for name, place in places.items()}
    name = f"labelled-{minutes:g}"
    reference = rows["pretrained"][2]
    groups = test_groups(reference[0])
    lines = [
        "",
        f"{target.name}, {target.unit}, {amounts[name]:.1f} minutes labelled, {amounts['unlabelled']:.0f} unlabelled; "
        f"dev {amounts['dev']:.1f}, test {amounts['test']:.1f}; {plan.finetune_updates[size]} updates of 12 s",
        "",
        "| arm | objective's accuracy, development audio | learning rate, seeds | dev | "
        + " | ".join(f"test, {group}, minus pretrained" for group in groups)
        + " |",
        "|---" * (4 + len(groups)) + "|",
    ]
    for arm, (model, rate, runs) in rows.items():
        cells = []
        for keep in groups.values():
            estimate = over_seeds([np.asarray(run["test"]["counts"])[keep] for run in runs], texts_of(runs[0], keep))
            cell = percent(estimate)
            if arm != "pretrained":
                both = paired(
                    [run["test"]["counts"] for run in runs],
                    [run["test"]["counts"] for run in reference],
                    keep,
                    texts_of(runs[0], keep),
                )
                cell += f", {percent(both, sign=True)}"
            cells.append(cell)
        dev = 100 * float(np.mean([dev_error(run) for run in runs]))
        objective = "" if arm == "untrained" else f"{masked_accuracy(plan, model, places['dev']):.3f}"
        lines.append(f"| {arm} | {objective} | {rate:g}, {len(runs)} | {dev:.1f} | " + " | ".join(cells) + " |")
    return lines


def runs_of_arm(plan: Plan, target: Target, arm: str, size: int) -> tuple[Path, float, list[dict[str, Any]]] | None:
    """Return the model, the chosen rate and the finished runs of an arm; None where a choice has not been made."""
    runs = plan.out / "runs"
    names = {"untrained": "untrained", "pretrained": "pretrain-s1"}
    if arm not in names:
        if not all((runs / f"sapt-{target.name}-lr{rate:g}" / "model").exists() for rate in plan.adapt_rates):
            return None
        rate = best_adapt_rate(plan, target)
        names[arm] = f"sapt-{target.name}-lr{rate:g}" if arm == "sapt" else f"source-lr{rate:g}"
    model = runs / names[arm] / "model"
    errors = {
        rate: dev_error(json.loads(file.read_text()))
        for rate in plan.rates
        if (file := run_of(plan, target, model, size, rate, plan.seeds[0]) / "counts.json").exists()
    }
    if len(errors) < len(plan.rates):
        return None
    rate = min(errors, key=lambda rate: errors[rate])
    files = [run_of(plan, target, model, size, rate, seed) / "counts.json" for seed in plan.seeds]
    return model, rate, [json.loads(file.read_text()) for file in files if file.exists()]


def test_groups(run: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return which test utterances are of voices that training has and, where voices are known, of those it has not."""
    heard = set(run["dev"]["voices"])
    is_seen = np.array([name in heard for name in run["test"]["voices"]])
    if is_seen.all():
        return {"unseen texts": is_seen}
    return {"unseen texts of known voices": is_seen, "an unknown voice": ~is_seen}


def texts_of(run: Mapping[str, Any], keep: np.ndarray) -> list[str]:
    """Return the text of each kept test utterance: repetitions of one text are no independent items."""
    return [own for own, kept in zip(run["test"]["texts"], keep, strict=True) if kept]


def over_seeds(counts: Sequence[np.ndarray], texts: Sequence[str]) -> Estimate:
    """Return the mean error rate over seeds; seeds and texts are resampled."""
    return hierarchical(np.stack(counts)[None], ratio, clusters=texts)


def paired(ours: Sequence[Any], theirs: Sequence[Any], keep: np.ndarray, texts: Sequence[str]) -> Estimate:
    """Return the difference of mean error rates: paired by text, seeds resampled in pairs too where there are as many."""
    num = min(len(ours), len(theirs))
    a, b = (np.stack([np.asarray(one)[keep] for one in arm[:num]]) for arm in (ours, theirs))
    if num == 1:
        return paired_difference(a[0], b[0], ratio, clusters=texts)
    return hierarchical(
        np.concatenate([a, b], axis=-1)[None], lambda sums: ratio(sums[:, :2]) - ratio(sums[:, 2:]), clusters=texts
    )


def percent(estimate: Estimate, *, sign: bool = False) -> str:
    """Write value and interval in per cent."""
    values = [100 * x for x in (estimate.value, estimate.low, estimate.high)]
    form = "{:+.1f} [{:+.1f}, {:+.1f}]" if sign else "{:.1f} [{:.1f}, {:.1f}]"
    return form.format(*values)


def text(cut: MonoCut) -> str:
    """Return what is said."""
    return str(cut.supervisions[0].text or "") if cut.supervisions else ""


def voice(cut: MonoCut) -> str:
    """Return who says it."""
    return str(cut.supervisions[0].speaker or "unknown") if cut.supervisions else "unknown"


def say(line: str) -> None:
    """Tell what is being done."""
    print(time.strftime("%H:%M:%S"), line, flush=True)


if __name__ == "__main__":
    main()
