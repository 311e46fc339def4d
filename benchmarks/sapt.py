"""Does continued self-supervised training on target audio raise language identification, and is it the language or the channel?

    python benchmarks/sapt.py --source DIR [--source DIR …] --debian DIR --out DIR
    python benchmarks/sapt.py --source DIR [--source DIR …] --synthetic --out DIR

The experiment of SAPT (arXiv 2312.07338), small. DIR of --debian is that of `isogloss corpus prepare debian`; --synthetic makes the
target with espeak-ng instead (extra `phones`), where channel and voices are controlled: it is no human speech, and says so.

    source    any corpora that `isogloss` opens, of other languages and channels than the target: read speech
    target    six languages. Debian: French, Spanish, Russian, Italian, Catalan, Danish telephone prompts and picture descriptions;
              synthetic: six languages over a simulated telephone, eight voices
    test      the same languages by voices, texts and channels (Debian), by voices (synthetic) that nothing was adapted on or drawn from
    arms      none; sapt (target audio without labels); controls of equally many steps: `again` (source audio), `channel` (the
              target's channels in other languages); `still` (target audio at a learning rate of 1e-7)

The source's model is pretrained here, or given with --model (an isogloss model with its objective). The learning rate of adaptation is
swept for sapt on another task (Debian: shots from prompts, test on descriptions; synthetic: other voices) and the controls have the
same; layer and weight decay of the probe, which is convex and so has no rate, are swept there for every arm, `none` included.
Everything is kept in --out and taken up again where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet, MonoCut

from isogloss.adapt.guard import refuse_test_audio
from isogloss.adapt.heldout import heldout_batches, score
from isogloss.core.rng import derive_seed
from isogloss.data.corpora.synthetic import synthesize
from isogloss.data.inputs import open_corpus, write_corpus
from isogloss.data.split import draw_few_shots
from isogloss.evaluation.bootstrap import Estimate, bootstrap
from isogloss.evaluation.features import extract_features
from isogloss.evaluation.lid import LidSettings, Pooled, classify_linear, pool
from isogloss.hub.load import load_model
from isogloss.objectives.base import build_objective
from isogloss.training.loop import train
from isogloss.training.parallel import Learner
from isogloss.training.recipe import find_recipe, load_recipe, merge_trees, parse_recipe, recipe_tree

LANGUAGES = ("fr", "es", "ru", "it", "ca", "da")
CHANNEL_LANGUAGES = ("en", "el", "ro", "bg", "be")
SHOTS = (1, 5, 10, 25, 50)
VIEWS = ("layer chosen", "last layer")
DRAWS = 5
# Weights of the area under accuracy over log shots, by trapezoids, divided by the range: a mean accuracy.
_STEPS = np.diff(np.log(SHOTS)) / np.log(SHOTS[-1] / SHOTS[0])
AREA = (np.append(_STEPS, 0) + np.append(0, _STEPS)) / 2
WEIGHT_DECAYS = (1e-3, 1e-2, 1e-1)
ARMS = ("none", "sapt", "again", "channel", "still")
PROMPTS, PICTURES, WORDS, LETTERS = "asterisk-core-sounds", "tuxpaint", "ktuberling", "klettres"
TEST = (
    *(("fr", "armelle"), ("es", "es-co"), ("it", "menardi"), ("ru", WORDS), ("ca", WORDS), ("da", WORDS)),
    *((tag, LETTERS) for tag in ("fr", "es", "it", "ru", "da")),
)
# Synthetic: voices 0 to 7 are the target's, 8 and 9 for development, 10 to 15 for the test.
SYNTHETIC = ("fr", "es", "ru", "it", "tr", "sw")
SYNTHETIC_CHANNEL = ("de", "fi", "hi", "pt-BR", "cs")
VOICES, TRAINED_VOICES, DEV_VOICES, UTTERANCES = 16, 8, 2, 10
TEST_CUTS, DEV_CUTS, MINUTES = 120, 60, 10.0  # of each language
SEEDS = (1, 2, 3)
AUDIO = (
    "data.seconds_per_update=12",
    "data.micro_batch_seconds=12",
    "data.min_seconds=0.6",
    "data.max_seconds=6",
    "data.num_workers=0",
    "training.threads=1",
    "training.checkpoint_every=100000",
)
# BEST-RQ with a small Conformer: the best phone features of the objectives that were tried with forty minutes of speech.
PRETRAIN = "pretrain/best_rq-field"


@dataclass(frozen=True)
class Plan:
    """What is run, from the command line."""

    out: Path
    sources: tuple[Path, ...]
    debian: Path | None
    model: Path | None
    pretrain_updates: int
    adapt_updates: int
    rates: tuple[float, ...]


def main() -> None:
    """Run what is not there yet and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, action="append", required=True)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--debian", type=Path)
    target.add_argument("--synthetic", action="store_true")
    parser.add_argument("--model", type=Path, help="pretrained on the sources; made here by default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pretrain-updates", type=int, default=3000)
    parser.add_argument("--adapt-updates", type=int, default=300)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3], help="of adaptation")
    options = parser.parse_args()
    out = options.out
    plan = Plan(
        out,
        tuple(options.source),
        options.debian,
        options.model,
        options.pretrain_updates,
        options.adapt_updates,
        tuple(options.rates),
    )
    corpora = prepare(plan)
    rates: dict[str, float] = {}
    task_dev, task_test = dev_task(plan, corpora), test_task(corpora)
    tried = {rate: adapted("sapt", rate, SEEDS[0], plan, corpora) for rate in plan.rates}
    figures = {rate: dev_accuracy(model, task_dev, out) for rate, model in tried.items()}
    say(f"development accuracy by learning rate: {figures}")
    rates |= dict.fromkeys(("sapt", "again", "channel"), max(figures, key=lambda rate: figures[rate]))
    rates["still"] = 1e-7
    results: dict[str, Any] = {"rates": rates, "development": {f"{k:g}": v for k, v in figures.items()}, "masked": {}}
    # Draws of shots are the same for every seed: where nothing is trained, or next to nothing, one model stands for all.
    seeds = {arm: SEEDS[:1] if arm in ("none", "still") else SEEDS for arm in ARMS}
    models = {
        arm: [
            pretrained(plan, corpora) if arm == "none" else adapted(arm, rates[arm], seed, plan, corpora)
            for seed in seeds[arm]
        ]
        for arm in ARMS
    }
    for arm, own in models.items():
        results["masked"][arm] = [masked_accuracy(model, corpora) for model in own]
    # The lowest layer, which adaptation hardly changes, may well be chosen: the last one shows what became of the encoder.
    for view in VIEWS:
        results[view] = {}
        hits: dict[str, np.ndarray] = {}  # arm → shots × utterances: share of draws and seeds that were right
        for arm, own in models.items():
            probe = best_probe(own, task_dev, out, is_last=view == "last layer")
            rows = [few_shot(model, task_test, probe, out) for model in own]
            hits[arm] = np.mean([row.mean(1) for row in rows], axis=0)
            by_draw = np.array([[[macro(h, task_test.test_languages) for h in shot] for shot in row] for row in rows])
            results[view][arm] = {
                "layer, weight decay": probe,
                "accuracy": by_draw.mean((0, 2)).tolist(),
                "sd over draws": by_draw.std(2).mean(0).tolist(),
                "sd over seeds": by_draw.mean(2).std(0).tolist(),
                "area": float(AREA @ by_draw.mean((0, 2))),
            }
            say(f"{view}, {arm}: {results[view][arm]}")
        results[view]["comparisons"] = compare(hits, task_test)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(results, corpora, task_test)
    (out / "results.md").write_text(text)
    print(text)


def prepare(plan: Plan) -> dict[str, Path]:
    """Write source, target, channel, dev and test corpora; the test's and dev's audio is in none of the others."""
    names = ("source", "target", "channel", "dev", "test")
    places = {name: plan.out / "corpora" / name for name in names}
    if all((place / "cuts.jsonl.gz").exists() for place in places.values()):
        return places
    parts = synthetic_parts(plan) if plan.debian is None else debian_parts(plan.debian)
    parts["source"] = [cut for path in plan.sources for cut in open_corpus(path) if cut.duration >= 0.6]
    for name in ("target", "channel"):
        parts[name] = limit(parts[name], 60 * MINUTES, language)
    parts["test"] = first(parts["test"], TEST_CUTS)
    for name in ("source", "target", "channel"):
        refuse_test_audio(parts[name], parts["test"], "test")
    for name, cuts in parts.items():
        write_corpus(CutSet.from_cuts(cuts), places[name])
    return places


def debian_parts(path: Path) -> dict[str, list[MonoCut]]:
    """Divide the Debian recordings: voices that are tested are nowhere else; dev is a part of the target."""
    debian = [cut for cut in open_corpus(path) if cut.duration >= 0.6]
    test = [cut for cut in debian if any(of(cut, tag, mark) for tag, mark in TEST)]
    tested = {cut.supervisions[0].speaker for cut in test}
    rest = [cut for cut in debian if cut.supervisions[0].speaker not in tested and is_target_channel(cut)]
    target = [cut for cut in rest if language(cut) in LANGUAGES]
    channel = [cut for cut in rest if language(cut) in CHANNEL_LANGUAGES]
    dev = [cut for cut in target if language(cut) in ("fr", "es", "ru") and PICTURES in source(cut)]
    return {"target": target, "channel": channel, "dev": first(dev, DEV_CUTS), "test": test}


def synthetic_parts(plan: Plan) -> dict[str, list[MonoCut]]:
    """Synthesise the target's and other languages over the telephone, and divide the voices."""
    folder = plan.out / "synthetic"
    if not (folder / "cuts.jsonl.gz").exists():
        synthesize(
            folder,
            languages=[*SYNTHETIC, *SYNTHETIC_CHANNEL],
            voices=VOICES,
            utterances_per_voice=UTTERANCES,
            channels=("telephone",),
            items=(2, 3),
        )
    cuts = [cut for cut in open_corpus(folder) if cut.duration >= 0.6]
    voices = sorted({voice_number(cut) for cut in cuts})
    trained, dev = voices[:TRAINED_VOICES], voices[TRAINED_VOICES : TRAINED_VOICES + DEV_VOICES]
    own = [cut for cut in cuts if language(cut) in SYNTHETIC]
    return {
        "target": [cut for cut in own if voice_number(cut) in trained],
        "channel": [cut for cut in cuts if language(cut) not in SYNTHETIC and voice_number(cut) in trained],
        "dev": first([cut for cut in own if voice_number(cut) in dev], DEV_CUTS),
        "test": [cut for cut in own if voice_number(cut) not in (*trained, *dev)],
    }


def pretrained(plan: Plan, corpora: Mapping[str, Path]) -> Path:
    """Return the model of the source."""
    if plan.model is not None:
        return plan.model
    run = plan.out / "runs" / "pretrain"
    if not (run / "model").exists():
        say(f"pretraining, {plan.pretrain_updates} updates")
        own = [
            f"data.path={json.dumps(str(corpora['source']))}",
            f"training.updates={plan.pretrain_updates}",
            "training.seed=1",
        ]
        train(load_recipe(PRETRAIN, [*AUDIO, *own]), run)
    return run / "model"


def adapted(arm: str, rate: float, seed: int, plan: Plan, corpora: Mapping[str, Path]) -> Path:
    """Return the model of an arm: equally many updates, seconds and settings; only the audio, or the rate, differs."""
    run = plan.out / "runs" / f"{arm}-s{seed}-lr{rate:g}"
    if not (run / "model").exists():
        say(f"{arm}, seed {seed}, learning rate {rate:g}")
        start = pretrained(plan, corpora)
        audio = corpora[{"again": "source", "channel": "channel"}.get(arm, "target")]
        tree = recipe_tree(find_recipe("adapt/continued"), [*AUDIO, f"training.updates={plan.adapt_updates}"])
        # Without early stop on held-out audio, which would give the arms different numbers of updates.
        tree = {name: section for name, section in tree.items() if name not in ("method", "adapt")}
        tree = merge_trees(tree, {"start": {"model": str(start), "frozen": []}, "data": {"path": str(audio)}})
        tree = merge_trees(tree, {"optim": {"lr": rate}, "training": {"seed": seed}})
        train(parse_recipe(tree, "sapt"), run)
    return run / "model"


@dataclass(frozen=True)
class Task:
    """Labelled cuts to draw shots from, and cuts to test on."""

    name: str
    shots: list[MonoCut]
    test: list[MonoCut]
    counts: tuple[int, ...]

    @property
    def test_languages(self) -> list[str]:
        """The language of each test cut."""
        return [language(cut) for cut in self.test]


def dev_task(plan: Plan, corpora: Mapping[str, Path]) -> Task:
    """Return the task that chooses: none of it is in the test that is reported.

    Debian: shots from prompts, test on descriptions, French, Spanish, Russian; synthetic: the target's shots, other voices.
    """
    cuts, test = list(open_corpus(corpora["target"])), list(open_corpus(corpora["dev"]))
    if plan.debian is not None:
        cuts = [cut for cut in cuts if language(cut) in ("fr", "es", "ru") and PROMPTS in source(cut)]
    return Task("dev", cuts, test, (5, 25))


def test_task(corpora: Mapping[str, Path]) -> Task:
    """Shots from the target corpus, test on voices and channels of their own."""
    return Task("test", list(open_corpus(corpora["target"])), list(open_corpus(corpora["test"])), SHOTS)


def pooled(model: Path, task: Task, out: Path) -> Pooled:
    """Return mean and deviation over time of every layer, for all cuts that any draw needs."""
    needed = {
        cut.id: cut
        for draw in range(DRAWS)
        for cut in draw_few_shots(task.shots, task.counts, seed=draw)[task.counts[-1]]
    }
    cuts = [*needed.values(), *task.test]
    file = out / "features" / f"{model.parent.name}-{task.name}.npz"
    if not file.exists():
        encoder = load_model(model).encoder
        result = pool(extract_features(encoder, cuts), cuts, LidSettings())
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {f"layer{k}": v for k, v in result.values.items()}
        np.savez(file, ids=np.array(result.ids), **arrays)
    stored = np.load(file)
    values = {int(name[5:]): stored[name] for name in stored.files if name.startswith("layer")}
    ids = stored["ids"].tolist()
    empty: list[str] = []
    return Pooled(model.parent.name, values, ids, empty, empty, empty, np.zeros(len(ids)))


def few_shot(model: Path, task: Task, probe: tuple[int, float], out: Path) -> np.ndarray:
    """Return shots × draws × test utterances: whether the language was right."""
    layer, weight_decay = probe
    own = pooled(model, task, out)
    row = {name: number for number, name in enumerate(own.ids)}
    values_BD = own.values[layer]
    names = sorted({language(cut) for cut in task.shots})
    test = [row[cut.id] for cut in task.test]
    truth = np.array([names.index(name) for name in task.test_languages])
    result = np.zeros((len(task.counts), DRAWS, len(test)))
    for draw in range(DRAWS):
        for number, (_, cuts) in enumerate(sorted(draw_few_shots(task.shots, task.counts, seed=draw).items())):
            labels = np.array([names.index(language(cut)) for cut in cuts])
            train_rows = [row[cut.id] for cut in cuts]
            scores = classify_linear(values_BD[train_rows], labels, values_BD[test], len(names), weight_decay)
            result[number, draw] = scores.argmax(1) == truth
    return result


def best_probe(models: Sequence[Path], task: Task, out: Path, *, is_last: bool = False) -> tuple[int, float]:
    """Return the layer (or the last) and weight decay with the best accuracy on the development task, over the seeds of an arm."""
    layers = sorted(pooled(models[0], task, out).values)[-1 if is_last else 0 :]
    grid = [(layer, decay) for layer in layers for decay in WEIGHT_DECAYS]
    return max(grid, key=lambda probe: np.mean([task_accuracy(model, task, probe, out) for model in models]))


def dev_accuracy(model: Path, task: Task, out: Path) -> float:
    """Return the accuracy on the development task with the best probe."""
    return float(task_accuracy(model, task, best_probe([model], task, out), out))


def task_accuracy(model: Path, task: Task, probe: tuple[int, float], out: Path) -> float:
    """Return macro-accuracy over all shot counts and draws."""
    hits = few_shot(model, task, probe, out)
    return float(np.mean([macro(h, task.test_languages) for h in hits.reshape(-1, hits.shape[-1])]))


def masked_accuracy(model: Path, corpora: Mapping[str, Path]) -> dict[str, float]:
    """Return the objective's accuracy on test audio (never heard), and on source audio (forgetting)."""
    loaded = load_model(model)
    assert loaded.objective_tree is not None
    objective = build_objective(loaded.objective_tree, loaded.encoder)
    objective.take_heads(loaded.head_tensors)
    learner = Learner(loaded.encoder, objective)
    recipe = load_recipe(PRETRAIN, [f"data.path={json.dumps(str(corpora['test']))}", *AUDIO])
    return {
        name: score(learner, heldout_batches(recipe, corpora[name], learner, max_seconds=240.0)).means()["accuracy"]
        for name in ("test", "source")
    }


def compare(hits: Mapping[str, np.ndarray], task: Task) -> dict[str, list[dict[str, Any]]]:
    """Return, for each arm and shot count, difference, relative gain and relative error reduction against `none`, with intervals.

    Paired: the same test utterances, shots and seeds. Twice: resampling utterances (of these voices), and voices.
    """
    languages = task.test_languages
    names = sorted(set(languages))
    member_BC = np.array([[float(own == name) for name in names] for own in languages])
    voices = [str(cut.supervisions[0].speaker) for cut in task.test]
    statistics: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "difference": lambda a, b: a - b,
        "relative gain": lambda a, b: (a - b) / np.maximum(b, 1e-9),
        "relative error reduction": lambda a, b: (a - b) / np.maximum(1 - b, 1e-9),
    }
    table: dict[str, list[dict[str, Any]]] = {}
    for arm in ARMS[1:]:
        rows = []
        for shots, weights in [*zip(SHOTS, np.eye(len(SHOTS)), strict=True), ("area", AREA)]:
            ours, theirs = weights @ hits[arm], weights @ hits["none"]
            counts = np.concatenate([member_BC * ours[:, None], member_BC * theirs[:, None], member_BC], axis=1)
            row: dict[str, Any] = {"shots": shots}
            for name, statistic in statistics.items():
                value = over_languages(statistic, len(names))
                row[name] = told(bootstrap(counts, value))
                row[f"{name}, voices"] = told(bootstrap(counts, value, clusters=voices))
            rows.append(row)
        table[arm] = rows
    return table


def over_languages(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray], num: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the statistic of the two macro-accuracies of summed counts; a language without test items does not count."""

    def value(sums: np.ndarray) -> np.ndarray:
        total = sums[:, 2 * num :]
        present = (total > 0).sum(1)
        accuracies = [
            np.divide(sums[:, i * num : (i + 1) * num], total, out=np.zeros_like(total), where=total > 0).sum(1)
            / present
            for i in range(2)
        ]
        return statistic(accuracies[0], accuracies[1])

    return value


def told(estimate: Estimate) -> list[float]:
    """Return value, low, high."""
    return [estimate.value, estimate.low, estimate.high]


def macro(hits_B: np.ndarray, languages: Sequence[str]) -> float:
    """Return the mean over languages of the accuracy."""
    return float(np.mean([hits_B[[own == name for own in languages]].mean() for name in sorted(set(languages))]))


def markdown(results: Mapping[str, Any], corpora: Mapping[str, Path], task: Task) -> str:
    """Return the tables."""
    head = [*(f"{n} shots" for n in SHOTS), "area"]
    lines = []
    for view in VIEWS:
        arms = results[view]
        lines += ["", f"macro-accuracy, %; {view}", "", f"| arm | rate | layer | {' | '.join(head)} |"]
        lines.append("|---" * (len(head) + 3) + "|")
        for arm in ARMS:
            own = arms[arm]
            cells = [
                f"{100 * a:.1f} (draws {100 * d:.1f}, seeds {100 * s:.1f})"
                for a, d, s in zip(own["accuracy"], own["sd over draws"], own["sd over seeds"], strict=True)
            ]
            rate = f"{results['rates'][arm]:g}" if arm in results["rates"] else ""
            layer = own["layer, weight decay"][0]
            lines.append(f"| {arm} | {rate} | {layer} | {' | '.join(cells)} | {100 * own['area']:.1f} |")
        for name in ("difference", "relative gain", "relative error reduction"):
            lines += ["", f"{view}: {name} against none, % [95 % over utterances] [95 % over voices]", ""]
            lines += [f"| arm | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
            for arm, rows in arms["comparisons"].items():
                cells = []
                for row in rows:
                    v, low, high = (100 * x for x in row[name])
                    _, wide_low, wide_high = (100 * x for x in row[f"{name}, voices"])
                    cells.append(f"{v:+.1f} [{low:+.1f}, {high:+.1f}] [{wide_low:+.1f}, {wide_high:+.1f}]")
                lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += ["", "| arm | objective's accuracy, target test | source |", "|---|---|---|"]
    for arm in ARMS:
        masked = [np.mean([one[name] for one in results["masked"][arm]]) for name in ("test", "source")]
        lines.append(f"| {arm} | {masked[0]:.3f} | {masked[1]:.3f} |")
    minutes = {name: sum(cut.duration for cut in open_corpus(place)) / 60 for name, place in corpora.items()}
    lines += ["", "minutes of audio: " + ", ".join(f"{name} {value:.0f}" for name, value in minutes.items())]
    lines += [f"test utterances: {len(task.test)}, of {len({c.supervisions[0].speaker for c in task.test})} voices"]
    return "\n".join([*lines, f"development accuracy by learning rate of sapt: {results['development']}", ""])


def of(cut: MonoCut, tag: str, mark: str) -> bool:
    """Return whether a cut is of this language and source."""
    return language(cut) == tag and mark in source(cut)


def is_target_channel(cut: MonoCut) -> bool:
    """Return whether a cut is a telephone prompt or a picture's description."""
    return PROMPTS in source(cut) or PICTURES in source(cut)


def voice_number(cut: MonoCut) -> str:
    """Return which synthetic voice speaks: it is the same in every language."""
    return str(cut.supervisions[0].speaker).rsplit("/", 1)[-1]


def language(cut: MonoCut) -> str:
    """Return the language without its region."""
    return str(cut.supervisions[0].language or "").split("-")[0]


def source(cut: MonoCut) -> str:
    """Return where the recording comes from."""
    return str((cut.custom or {}).get("source", ""))


def first(cuts: Iterable[MonoCut], count: int) -> list[MonoCut]:
    """Return at most so many cuts of each language, at random."""
    chosen: dict[str, list[MonoCut]] = {}
    for cut in sorted(cuts, key=lambda cut: derive_seed("sapt", cut.id)):
        own = chosen.setdefault(language(cut), [])
        if len(own) < count:
            own.append(cut)
    return [cut for own in chosen.values() for cut in own]


def limit(cuts: Iterable[MonoCut], seconds: float, key: Callable[[MonoCut], str]) -> list[MonoCut]:
    """Return cuts at random with at most so many seconds of each key."""
    spent: dict[str, float] = {}
    chosen = []
    for cut in sorted(cuts, key=lambda cut: derive_seed("sapt", cut.id)):
        if spent.get(key(cut), 0.0) < seconds:
            spent[key(cut)] = spent.get(key(cut), 0.0) + cut.duration
            chosen.append(cut)
    return chosen


def say(text: str) -> None:
    """Tell what is being done."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    main()
