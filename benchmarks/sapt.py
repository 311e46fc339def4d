"""Does continued self-supervised training on target audio raise language identification, and is it the language or the channel?

    python benchmarks/sapt.py --debian DIR [--english DIR] [--polish DIR] --out DIR [--budget small|full]

DIR of `isogloss corpus prepare debian`; English and Polish are any corpora that `isogloss` opens and widen the source. The
experiment of SAPT (arXiv 2312.07338), small:

    source    Czech and Dutch acted dialogue (fillets-ng), English and Polish where given
    target    French, Spanish, Russian, Italian, Catalan, Danish: telephone prompts and picture descriptions
    test      the same six languages by voices, texts and channels that nothing was trained or adapted on
    arms      none; sapt (target audio without labels); controls of equally many steps: `source` (source audio again), `channel` (the
              target's channels in other languages: English prompts, Greek, Romanian, Bulgarian, Belarusian descriptions);
              `still` (target audio at a learning rate of 1e-7)

The learning rate of adaptation is swept for sapt on another task (shots from prompts, test on descriptions, three languages), and the
controls have the same; layer and weight decay of the probe, which is convex and so has no rate, are swept there for every arm, `none`
included. Everything is kept in --out and taken up again where it stopped.
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
SHOTS = (1, 5, 10, 25, 50)
DRAWS = 5
WEIGHT_DECAYS = (1e-3, 1e-2, 1e-1)
ARMS = ("none", "sapt", "source", "channel", "still")
PROMPTS, PICTURES, WORDS = "asterisk-core-sounds", "tuxpaint", "ktuberling"
TEST = {"fr": "armelle", "es": "es-co", "it": "menardi", "ru": WORDS, "ca": WORDS, "da": WORDS}


@dataclass(frozen=True)
class Budget:
    """Sizes of the experiment; wav2vec 2.0 learns nothing in minutes, CPC does, so the small one continues CPC."""

    recipe: str
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    pretrain_updates: int
    adapt_updates: int
    minutes: float  # of each language in each training corpus
    test_cuts: int  # of each language
    rates: tuple[float, ...]


BUDGETS = {
    "small": Budget(
        "demo/modified-cpc",
        ("encoder.channels=96", "encoder.width=96", "data.group_by=speaker"),
        (1, 2, 3),
        150,
        60,
        10.0,
        120,
        (5e-4, 2e-3),
    ),
    "full": Budget(
        "demo/wav2vec2",
        ("encoder.preset=wave-small", "data.group_by=none"),
        (1, 2, 3, 4, 5),
        20_000,
        4000,
        30.0,
        500,
        (5e-5, 2e-4, 1e-3),
    ),
}


def main() -> None:
    """Run what is not there yet and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debian", type=Path, required=True)
    parser.add_argument("--english", type=Path)
    parser.add_argument("--polish", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", choices=list(BUDGETS), default="small")
    options = parser.parse_args()
    budget, out = BUDGETS[options.budget], options.out
    began = time.process_time()
    corpora = prepare(options, budget, out / "corpora")
    rates: dict[str, float] = {}
    task_dev, task_test = dev_task(corpora), test_task(corpora)
    tried = {rate: adapted("sapt", rate, budget.seeds[0], budget, corpora, out) for rate in budget.rates}
    figures = {rate: dev_accuracy(model, task_dev, out) for rate, model in tried.items()}
    say(f"development accuracy by learning rate: {figures}")
    rates |= dict.fromkeys(("sapt", "source", "channel"), max(figures, key=lambda rate: figures[rate]))
    rates["still"] = 1e-7
    results: dict[str, Any] = {"budget": options.budget, "rates": rates, "seeds": budget.seeds, "masked": {}}
    hits: dict[str, np.ndarray] = {}  # arm → shots × utterances: share of draws and seeds that were right
    chosen: dict[str, tuple[int, float]] = {}
    for arm in ARMS:
        models = [
            pretrained(seed, budget, corpora, out)
            if arm == "none"
            else adapted(arm, rates[arm], seed, budget, corpora, out)
            for seed in budget.seeds
        ]
        chosen[arm] = best_probe(models, task_dev, out)
        rows = [few_shot(model, task_test, chosen[arm], out) for model in models]
        hits[arm] = np.mean([row.mean(1) for row in rows], axis=0)
        by_draw = np.array([[[macro(h, task_test.test_languages) for h in shot] for shot in row] for row in rows])
        results[arm] = {
            "layer, weight decay": chosen[arm],
            "accuracy": by_draw.mean((0, 2)).tolist(),
            "sd over draws": by_draw.std(2).mean(0).tolist(),
            "sd over seeds": by_draw.mean(2).std(0).tolist(),
        }
        results["masked"][arm] = [masked_accuracy(model, budget, corpora) for model in models]
        say(f"{arm}: {results[arm]}")
    results["comparisons"] = compare(hits, task_test)
    results["cpu_minutes"] = (time.process_time() - began) / 60
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(results, corpora, task_test)
    (out / "results.md").write_text(text)
    print(text)


def prepare(options: argparse.Namespace, budget: Budget, folder: Path) -> dict[str, Path]:
    """Write source, target, channel and test corpora; the test's audio is in none of the others."""
    names = ("source", "target", "channel", "test")
    places = {name: folder / name for name in names}
    if all((place / "cuts.jsonl.gz").exists() for place in places.values()):
        return places
    debian = [cut for cut in open_corpus(options.debian) if cut.duration >= 0.6]
    test = [cut for language, mark in TEST.items() for cut in debian if of(cut, language, mark)]
    tested = {cut.supervisions[0].speaker for cut in test}
    rest = [cut for cut in debian if cut.supervisions[0].speaker not in tested]
    parts = {
        "source": [cut for cut in rest if "fillets" in source(cut)],
        "target": [cut for cut in rest if language(cut) in LANGUAGES and is_target_channel(cut)],
        "channel": [cut for cut in rest if language(cut) in ("en", "el", "ro", "bg", "be") and is_target_channel(cut)],
    }
    for path, tag in ((options.english, "en"), (options.polish, "pl")):
        if path is not None:
            parts["source"] += list(open_corpus(path, language=tag))
    for name, cuts in parts.items():
        limited = limit(cuts, 60 * budget.minutes, lambda cut: language(cut))
        refuse_test_audio(limited, test, "test")
        write_corpus(CutSet.from_cuts(limited), places[name])
    write_corpus(CutSet.from_cuts(first(test, budget.test_cuts)), places["test"])
    return places


def pretrained(seed: int, budget: Budget, corpora: Mapping[str, Path], out: Path) -> Path:
    """Return the model of a seed, trained on the source."""
    run = out / "runs" / f"pretrain-s{seed}"
    if not (run / "model").exists():
        say(f"pretraining, seed {seed}")
        recipe = load_recipe(
            budget.recipe,
            [
                f"data.path={json.dumps(str(corpora['source']))}",
                *COMMON,
                *budget.settings,
                f"training.updates={budget.pretrain_updates}",
                f"training.seed={seed}",
            ],
        )
        train(recipe, run)
    return run / "model"


def adapted(arm: str, rate: float, seed: int, budget: Budget, corpora: Mapping[str, Path], out: Path) -> Path:
    """Return the model of an arm: equally many updates, seconds and settings; only the audio, or the rate, differs."""
    run = out / "runs" / f"{arm}-s{seed}-lr{rate:g}"
    if not (run / "model").exists():
        say(f"{arm}, seed {seed}, learning rate {rate:g}")
        start = pretrained(seed, budget, corpora, out)
        audio = corpora[{"sapt": "target", "still": "target"}.get(arm, arm)]
        settings = [setting for setting in budget.settings if not setting.startswith("encoder.")]
        tree = recipe_tree(find_recipe(budget.recipe), [*COMMON, *settings, f"training.updates={budget.adapt_updates}"])
        tree = merge_trees(tree, {"start": {"model": str(start), "frozen": ["frontend"]}, "data": {"path": str(audio)}})
        tree = merge_trees(tree, {"optim": {"lr": rate}, "training": {"seed": seed}})
        train(parse_recipe(tree, "sapt"), run)
    return run / "model"


COMMON = ("data.num_workers=0", "data.min_seconds=0.6", "training.checkpoint_every=100000")


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


def dev_task(corpora: Mapping[str, Path]) -> Task:
    """Shots from prompts, test on descriptions: French, Spanish, Russian; none of it is in the test that is reported."""
    cuts = [cut for cut in open_corpus(corpora["target"]) if language(cut) in ("fr", "es", "ru")]
    test = first([cut for cut in cuts if PICTURES in source(cut)], 60)
    return Task("dev", [cut for cut in cuts if PROMPTS in source(cut)], test, (5, 25))


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
        np.savez(file, ids=np.array(result.ids), **{f"layer{k}": v for k, v in result.values.items()})
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


def best_probe(models: Sequence[Path], task: Task, out: Path) -> tuple[int, float]:
    """Return the layer and weight decay with the best accuracy on the development task, over all seeds of an arm."""
    layers = sorted(pooled(models[0], task, out).values)
    grid = [(layer, decay) for layer in layers for decay in WEIGHT_DECAYS]
    return max(grid, key=lambda probe: np.mean([task_accuracy(model, task, probe, out) for model in models]))


def dev_accuracy(model: Path, task: Task, out: Path) -> float:
    """Return the accuracy on the development task with the best probe."""
    return float(task_accuracy(model, task, best_probe([model], task, out), out))


def task_accuracy(model: Path, task: Task, probe: tuple[int, float], out: Path) -> float:
    """Return macro-accuracy over all shot counts and draws."""
    hits = few_shot(model, task, probe, out)
    return float(np.mean([macro(h, task.test_languages) for h in hits.reshape(-1, hits.shape[-1])]))


def masked_accuracy(model: Path, budget: Budget, corpora: Mapping[str, Path]) -> dict[str, float]:
    """Return the objective's accuracy on test audio (never heard), and on source audio (forgetting)."""
    file = model.parent / "masked.json"
    if not file.exists():
        loaded = load_model(model)
        assert loaded.objective_tree is not None
        objective = build_objective(loaded.objective_tree, loaded.encoder)
        objective.take_heads(loaded.head_tensors)
        learner = Learner(loaded.encoder, objective)
        recipe = load_recipe(
            budget.recipe, [f"data.path={json.dumps(str(corpora['test']))}", *COMMON, *budget.settings]
        )
        figures = {
            name: score(learner, heldout_batches(recipe, corpora[name], learner, max_seconds=300.0)).means()["accuracy"]
            for name in ("test", "source")
        }
        file.write_text(json.dumps(figures))
    found: dict[str, float] = json.loads(file.read_text())
    return found


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
        for number, shots in enumerate(SHOTS):
            ours, theirs = hits[arm][number], hits["none"][number]
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
    lines = ["| arm | learning rate | " + " | ".join(f"{n} shots" for n in SHOTS) + " | masked acc. target | source |"]
    lines.append("|---" * (len(SHOTS) + 4) + "|")
    for arm in ARMS:
        own = results[arm]
        cells = [
            f"{100 * a:.1f} (draws {100 * d:.1f}, seeds {100 * s:.1f})"
            for a, d, s in zip(own["accuracy"], own["sd over draws"], own["sd over seeds"], strict=True)
        ]
        masked = [np.mean([one[name] for one in results["masked"][arm]]) for name in ("test", "source")]
        rate = f"{results['rates'][arm]:g}" if arm in results["rates"] else ""
        lines.append(f"| {arm} | {rate} | " + " | ".join(cells) + f" | {masked[0]:.3f} | {masked[1]:.3f} |")
    for name in ("difference", "relative gain", "relative error reduction"):
        lines += ["", f"{name} against none, % [95 % over utterances] [95 % over voices]", ""]
        lines += ["| arm | " + " | ".join(f"{n} shots" for n in SHOTS) + " |", "|---" * (len(SHOTS) + 1) + "|"]
        for arm, rows in results["comparisons"].items():
            cells = []
            for row in rows:
                v, low, high = (100 * x for x in row[name])
                _, wide_low, wide_high = (100 * x for x in row[f"{name}, voices"])
                cells.append(f"{v:+.1f} [{low:+.1f}, {high:+.1f}] [{wide_low:+.1f}, {wide_high:+.1f}]")
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    minutes = {name: sum(cut.duration for cut in open_corpus(place)) / 60 for name, place in corpora.items()}
    lines += ["", "minutes of audio: " + ", ".join(f"{name} {value:.0f}" for name, value in minutes.items())]
    lines += [f"test utterances: {len(task.test)}, of {len({c.supervisions[0].speaker for c in task.test})} voices"]
    return "\n".join([*lines, f"processor minutes of this call: {results['cpu_minutes']:.1f}", ""])


def of(cut: MonoCut, tag: str, mark: str) -> bool:
    """Return whether a cut is of this language and source."""
    return language(cut) == tag and mark in source(cut)


def is_target_channel(cut: MonoCut) -> bool:
    """Return whether a cut is a telephone prompt or a picture's description."""
    return PROMPTS in source(cut) or PICTURES in source(cut)


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
