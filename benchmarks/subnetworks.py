"""Sub-networks per language beside their rivals and controls, on real speech: phone error, cost, overlap, lesions.

    python benchmarks/subnetworks.py --debian CORPUS --field FOLDER --out RUN [--budget small|medium|full] [--seed 1]

CORPUS is what `isogloss corpus prepare debian` made; FOLDER holds corpora of other languages, one folder each, in any form that
isogloss opens. What is done is found in RUN and not done again. One dense multilingual model learns phones by CTC; from it every
arm goes on for the same number of updates with the same data in the same order. Only what an arm does about languages differs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import fastcopy

from isogloss.adapt.loss_measure import loss_measure
from isogloss.adapt.subnetwork import Config as SubnetworkConfig
from isogloss.adapt.subnetwork import Importance, find_subnetworks
from isogloss.benchmark.charts import standalone
from isogloss.benchmark.language_pages import (
    LanguagePage,
    gain_page,
    lesion_charts,
    mask_chart,
    overlap_caption,
    overlap_chart,
    transfer_page,
)
from isogloss.core.rng import derive_seed
from isogloss.core.vocabulary import ipa_segments
from isogloss.data.index import CorpusIndex
from isogloss.data.inputs import open_corpus, write_corpus
from isogloss.data.phonemes import can_phonemize, phonemize_words
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import costs
from isogloss.evaluation.bootstrap import Estimate
from isogloss.evaluation.language_records import gain_records, overlap_records, transfer_records
from isogloss.evaluation.language_reports import (
    LanguageCounts,
    changes,
    error_rate,
    gain_by_hours,
    helped_by_sharing,
    mean_difference,
    transfer_and_interference,
)
from isogloss.evaluation.predictions import read_predictions
from isogloss.evaluation.probe_splits import limit_seconds
from isogloss.evaluation.relatedness import classification_of
from isogloss.evaluation.subnetworks import kinship, mask_overlap, relatedness
from isogloss.evaluation.tables import to_markdown
from isogloss.evaluation.tasks import load_task, run_task, write_predictions
from isogloss.evaluation.under_masks import lesion_rise, lesions, mask_rise, task_measure, under_masks
from isogloss.hub.load import load_model
from isogloss.hub.save import save_model
from isogloss.objectives.base import Objective
from isogloss.training.loop import train
from isogloss.training.recipe import parse_recipe
from isogloss.training.start import start_learner

MIN_SECONDS = 60.0  # of training; a language with less is left out
IS_IPA = ("mdw", "nst")  # transcripts of linguists, near enough to phones


@dataclass(frozen=True)
class Budget:
    """Sizes of everything."""

    minutes: Mapping[str, float]  # of training speech
    test_seconds: float
    width: int
    layers: int
    warmup_updates: int
    updates: int
    seconds_per_update: float
    micro_batch_seconds: float  # also of the longest utterance: a cropped one would not fit its text
    batches: int
    probe_seconds: float  # of each language, for wrong masks and lesions
    arms: tuple[str, ...]


ARMS = {
    "dense": {},
    "one-hot": {"kind": "one-hot"},
    "gates": {"kind": "gates"},
    "adapters": {"kind": "adapters", "bottleneck": 16},
    "lora": {"kind": "lora", "rank": 4, "alpha": 8.0},
}
ALONE = "monolingual"
CONTROLS = ("dense", "S3Net", "random masks", "one-hot")  # no figure for sub-networks without these
MASKED: dict[str, Importance] = {
    "S3Net": "taylor",
    "S3Net (squared)": "taylor-squared",
    "lottery masks": "lottery",
    "random masks": "random",
    "one mask for all": "shared",
    "one mask of magnitudes": "magnitude",
}
SMALL_MINUTES = {"cs": 30, "nl": 30, "mdw": 30, "pl": 20, "es": 20, "ru": 20, "fr": 10, "it": 10, "en": 10, "nst": 5}
SMALL_MINUTES |= {"ro": 5, "bg": 5, "be": 3, "da": 3}
BUDGETS = {
    "small": Budget(
        SMALL_MINUTES,
        test_seconds=100.0,
        width=128,
        layers=4,
        warmup_updates=900,
        updates=300,
        seconds_per_update=16.0,
        micro_batch_seconds=4.0,
        batches=40,
        probe_seconds=10.0,
        arms=("dense", "S3Net", "random masks", "one-hot", "adapters"),
    ),
    "medium": Budget(
        dict.fromkeys(SMALL_MINUTES, 60.0),
        test_seconds=150.0,
        width=192,
        layers=4,
        warmup_updates=4000,
        updates=1200,
        seconds_per_update=24.0,
        micro_batch_seconds=8.0,
        batches=80,
        probe_seconds=20.0,
        arms=("dense", "S3Net", "random masks", "one-hot", "adapters", ALONE),
    ),
    "full": Budget(
        dict.fromkeys(SMALL_MINUTES, 600.0),
        test_seconds=300.0,
        width=256,
        layers=6,
        warmup_updates=12_000,
        updates=8_000,
        seconds_per_update=60.0,
        micro_batch_seconds=12.0,
        batches=200,
        probe_seconds=60.0,
        arms=(*ARMS, *MASKED, ALONE),
    ),
}


@dataclass(frozen=True)
class Part:
    """Cuts of each language for training, for choosing groups, and for testing."""

    train: dict[str, list[Any]]
    dev: dict[str, list[Any]]
    test: dict[str, list[Any]]


def phones_of(cut: Any, language: str) -> str:
    """Return the phones of a cut as an IPA text; empty where there is none that can be trusted."""
    text = " ".join(s.text for s in cut.supervisions if s.text).strip()
    if not text or any(character.isdigit() for character in text):
        return ""
    if language in IS_IPA:
        return " ".join(ipa_segments(text))
    return " ".join("".join(word) for word in phonemize_words(text, language))


def divide(sources: Sequence[Path], budget: Budget, seed: int) -> Part:
    """Divide every language by text: the same sentence is never on two sides, whoever says it."""
    cuts: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for source in sources:
        for cut in open_corpus(source):
            language = str(cut.supervisions[0].language).split("-")[0] if cut.supervisions else ""
            if language not in budget.minutes or not 1.0 <= cut.duration <= budget.micro_batch_seconds:
                continue
            if language not in IS_IPA and not can_phonemize(language):
                continue
            phones = phones_of(cut, language)
            if 3 <= len(phones.replace(" ", "")) <= 25 * cut.duration:
                told = fastcopy(cut.supervisions[0], text=phones, language=language)
                cuts[language][phones].append(fastcopy(cut, supervisions=[told]))
    part = Part({}, {}, {})
    for language in sorted(cuts):
        groups = sorted(cuts[language].items(), key=lambda item: derive_seed(seed, "divide", language, item[0]))
        limits = [(part.test, budget.test_seconds), (part.dev, 0.5 * budget.test_seconds)]
        for side, seconds in [*limits, (part.train, 60.0 * budget.minutes[language])]:
            side[language] = []
            while groups and sum(cut.duration for cut in side[language]) < seconds:
                side[language] += groups.pop()[1]
        if sum(cut.duration for cut in part.train[language]) < MIN_SECONDS:
            for side in (part.train, part.dev, part.test):
                del side[language]
    return part


def recipe_tree(budget: Budget, corpus: Path, seed: int, updates: int, lr: float) -> dict[str, Any]:
    """Return what all runs have in common."""
    return {
        "encoder": {
            "kind": "mel",
            "stack": 3,
            "width": budget.width,
            "num_layers": budget.layers,
            "num_heads": 4,
            "ffn_width": 4 * budget.width,
        },
        "objective": {"name": "ctc", "labels": {"unit": "ipa", "min_count": 20}},
        "data": {
            "path": str(corpus),
            "group_by": "language",
            "language_temperature": 0.5,
            "seconds_per_update": budget.seconds_per_update,
            "micro_batch_seconds": budget.micro_batch_seconds,
            "min_seconds": 1.0,
            "max_seconds": budget.micro_batch_seconds,
            "num_workers": 0,
        },
        "optim": {"lr": lr, "clip": 1.0},
        "schedule": {"warmup": 0.1},
        "training": {"updates": updates, "seed": seed, "log_every": 50, "checkpoint_every": 300, "keep": 1},
    }


def run_arm(tree: dict[str, Any], folder: Path, where: str) -> Path:
    """Train what a tree says unless that was done; return the model and leave the CPU seconds beside it."""
    if not (folder / "model" / "isogloss.json").exists():
        begin = time.process_time()
        train(parse_recipe(tree, where), folder)
        (folder / "cpu_seconds.json").write_text(json.dumps(time.process_time() - begin))
    return folder / "model"


def masked_start(tree: dict[str, Any], model: Path, out: Path, config: SubnetworkConfig) -> Path:
    """Write the dense model with masks, unless that was done."""
    if (out / "isogloss.json").exists():
        return out
    recipe = parse_recipe({**tree, "start": {"model": str(model)}}, "masks")
    assert recipe.start is not None
    learner, _ = start_learner(recipe.start, recipe.encoder, recipe.objective)
    index = CorpusIndex.open(recipe.data.path)

    def alone(language: str) -> Encoder:
        own = {**tree, "start": {"model": str(model)}}
        own["data"] = {**tree["data"], "languages": [language]}
        own["training"] = {**tree["training"], "updates": config.alone_updates}
        return load_model(run_arm(own, out.parent / "alone" / language, language)).encoder

    find_subnetworks(learner, recipe, sorted(index.language_names), config, train_alone=alone)
    assert isinstance(learner.objective, Objective)
    save_model(out, learner.encoder, learner.objective, {"subnetworks": config.model_dump(mode="json")})
    return out


def said(model: Path, corpora: Mapping[str, Path], out: Path) -> dict[str, dict[str, LanguageCounts]]:
    """Let a model write the phones of the development and test corpora, as `isogloss predict` does, and return errors by language."""
    out.mkdir(parents=True, exist_ok=True)
    for side in ("dev", "test"):
        if not (out / f"{side}.jsonl").exists():
            encoder, task = load_task(model)
            write_predictions(out / f"{side}.jsonl", run_task(encoder, task, list(open_corpus(corpora[side]))))
    return {side: read_predictions([out / f"{side}.jsonl"], "per") for side in ("dev", "test")}


def cost_of(model: Path) -> tuple[float, float]:
    """Return the weights that a language uses, and the bytes that it adds to the shared model, on average over languages."""
    encoder = load_model(model).encoder
    if encoder.edits is None:
        return float(sum(parameter.numel() for parameter in encoder.parameters())), 0.0
    own = costs(encoder).values()
    return float(np.mean([cost.active for cost in own])), float(np.mean([cost.stored_bytes for cost in own]))


@dataclass(frozen=True)
class Arm:
    """Errors by language on both corpora, and what a language costs."""

    dev: dict[str, LanguageCounts]
    test: dict[str, LanguageCounts]
    active: float
    stored: float


def arm_of(model: Path, corpora: Mapping[str, Path], out: Path) -> Arm:
    """Score a model."""
    found = said(model, corpora, out / "said")
    return Arm(found["dev"], found["test"], *cost_of(model))


def main() -> None:
    """Run what was not run yet, and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--debian", type=Path, required=True)
    parser.add_argument("--field", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", choices=list(BUDGETS), default="small")
    parser.add_argument("--arms", nargs="+", help="only these of the budget's arms")
    parser.add_argument("--sparsity", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    budget, out, seed = BUDGETS[options.budget], options.out, options.seed
    if options.arms:
        budget = replace(budget, arms=tuple(arm for arm in budget.arms if arm in (*CONTROLS, *options.arms)))
    out.mkdir(parents=True, exist_ok=True)
    sources = [options.debian, *(sorted(p for p in options.field.iterdir() if p.is_dir()) if options.field else [])]
    part = divide(sources, budget, seed)
    corpus = out / "corpus"
    if not (corpus / "cuts.jsonl.gz").exists():
        written(part.train, corpus)
    minutes = {language: sum(cut.duration for cut in cuts) / 60 for language, cuts in part.train.items()}
    print({k: round(v, 1) for k, v in minutes.items()}, flush=True)

    warm = run_arm(recipe_tree(budget, corpus, seed, budget.warmup_updates, 1e-3), out / "warm-up", "warm-up")
    tree = {**recipe_tree(budget, corpus, seed, budget.updates, 2e-3), "encoder": {}, "objective": {}}  # the warm-up's
    corpora = {"dev": written(part.dev, out / "dev"), "test": written(part.test, out / "test")}
    arms = {"warm-up": arm_of(warm, corpora, out / "warm-up")}
    for arm in budget.arms:
        if arm == ALONE:
            arms[arm] = monolingual(budget, corpus, corpora, minutes, out / arm, seed, warm)
            continue
        folder = out / arm.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        start, edits = warm, ARMS.get(arm, {})
        if arm in MASKED:
            config = SubnetworkConfig(
                sparsity=options.sparsity,
                importance=MASKED[arm],
                batches=budget.batches,
                seed=seed,
            )
            start = masked_start(tree, warm, folder / "start", config)
        own = {**tree, "start": {"model": str(start)}, **({"edits": edits} if edits else {})}
        arms[arm] = arm_of(run_arm(own, folder, arm), corpora, folder)
        print(arm, round(np.mean([error_rate(c) for c in arms[arm].test.values()]), 4), flush=True)
    text = report(budget, options.sparsity, minutes, arms, out)
    text += masks_report([arm for arm in budget.arms if arm in MASKED], part, budget.probe_seconds, out, seed)
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text)


def written(side: Mapping[str, Sequence[Any]], folder: Path) -> Path:
    """Write the cuts of all languages as a corpus."""
    write_corpus([cut for cuts in side.values() for cut in cuts], folder)
    return folder


def monolingual(
    budget: Budget,
    corpus: Path,
    corpora: Mapping[str, Path],
    minutes: Mapping[str, float],
    out: Path,
    seed: int,
    warm: Path,
) -> Arm:
    """Train one model per language from scratch on the share of all updates that the multilingual models gave the language."""
    shares = {language: minutes[language] ** 0.5 for language in minutes}
    labels = (load_model(warm).objective_tree or {})["labels"]
    dev: dict[str, LanguageCounts] = {}
    test: dict[str, LanguageCounts] = {}
    for language in minutes:
        share = shares[language] / sum(shares.values())
        updates = max(20, round(share * (budget.warmup_updates + budget.updates)))
        tree = recipe_tree(budget, corpus, seed, updates, 2e-3)
        tree["data"]["languages"] = [language]
        tree["objective"]["labels"] = labels
        model = run_arm(tree, out / language, language)
        found = said(model, corpora, out / language / "said")
        dev[language], test[language] = found["dev"][language], found["test"][language]
    weights = cost_of(model)[0]
    return Arm(dev, test, weights, 4.0 * weights)


def report(budget: Budget, sparsity: float, minutes: Mapping[str, float], arms: Mapping[str, Arm], out: Path) -> str:
    """Return the report; sub-networks stand beside random masks and the dense model that is told the language."""
    counts = {arm: own.test for arm, own in arms.items()}
    languages = sorted(minutes, key=lambda language: -minutes[language])
    middle = float(np.median([minutes[language] for language in languages]))
    groups = {
        "all": languages,
        "much": [k for k in languages if minutes[k] > middle],
        "little": [k for k in languages if minutes[k] <= middle],
    }
    lines = [f"# Sub-networks per language, {len(languages)} languages, ρ = {sparsity}", ""]
    lines += [
        f"Phone error rate (%), greedy CTC, one seed. Settings: `{json.dumps(asdict(budget), ensure_ascii=False)}`.",
        "",
    ]
    head = [
        "arm",
        *(f"{name} ({len(own)})" for name, own in groups.items()),
        "all, minus dense",
        "active",
        "stored, a language",
    ]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm, own in counts.items():
        cells = [arm]
        cells += [f"{100 * np.mean([error_rate(own[k]) for k in names]):.1f}" for names in groups.values()]
        cells.append("" if arm == "dense" else percent(mean_difference(own, counts["dense"], languages)))
        cells += [f"{arms[arm].active:,.0f}", f"{arms[arm].stored / 1000:,.1f} kB"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "## By language",
        "",
        "| language | minutes | " + " | ".join(counts) + " |",
        "|" + "---|" * (2 + len(counts)),
    ]
    for language in languages:
        cells = [f"{100 * error_rate(own[language]):.1f}" for own in counts.values()]
        lines.append(f"| {language} | {minutes[language]:.1f} | " + " | ".join(cells) + " |")
    lines += ["", "## Paired differences (percentage points; negative: the first is better)", ""]
    others = [arm for arm in counts if arm not in ("S3Net", "warm-up")]
    lines += [
        f"- S3Net − {arm}: "
        + "; ".join(f"{n} {percent(mean_difference(counts['S3Net'], counts[arm], own))}" for n, own in groups.items())
        for arm in others
    ]
    if ALONE in counts:
        helped = helped_by_sharing(arms[ALONE].dev, arms["dense"].dev)
        for arm in [arm for arm in counts if arm not in ("dense", ALONE, "warm-up")]:
            found = transfer_and_interference(counts[ALONE], counts["dense"], counts[arm], helped)
            rows = transfer_records(found, multilingual="dense", adapted=arm, dataset="test", metric="per")
            transfer_page(found, rows, multilingual="dense", adapted=arm, metric="per", notes=[]).write(
                out, f"transfer-{arm.replace(' ', '-')}"
            )
            lines += ["", f"## Transfer and interference: {arm}", "", to_markdown(rows)]
    gained = gain_by_hours(changes(counts["dense"], counts["S3Net"]), {k: v / 60 for k, v in minutes.items()})
    rows = gain_records(gained, system="dense → S3Net", dataset="test", metric="per")
    gain_page(gained, rows, system="dense → S3Net", metric="per", notes=[]).write(out, "gain")
    correlation = gained.correlation.format(digits=2)
    return "\n".join(
        [*lines, "", f"Spearman correlation of the gain of S3Net over dense with hours heard: {correlation}.", ""]
    )


def masks_report(masked: Sequence[str], part: Part, seconds: float, out: Path, seed: int) -> str:
    """Return what masks share, and whom other masks and lesions hurt; draw it kin side by side."""
    page = LanguagePage("Overlap of sub-networks", "What two languages leave out together.", [])
    for arm in masked:
        found = mask_overlap(load_model(out / arm.replace(" ", "-") / "start").encoder)
        kin = kinship({name: classification_of(name) or (name,) for name in found.languages}, found.languages)
        is_flat = np.ptp(found.iou_LL[~np.eye(len(kin), dtype=bool)]) == 0
        page.records += overlap_records(found, None if is_flat else relatedness(found.iou_LL, kin), system=arm)
        order = sorted(range(len(kin)), key=lambda i: classification_of(found.languages[i]) or ())
        page.charts[arm.replace(" ", "-")] = (overlap_chart(f"Overlap: {arm}", found, order), overlap_caption(found))
    page.write(out, "overlap")
    sample = {name: limit_seconds(cuts, seconds, seed) for name, cuts in part.dev.items()}
    encoder, task = load_task(out / "S3Net" / "model")
    languages = sorted(sample, key=lambda name: classification_of(name) or ())
    masks = under_masks(encoder, languages, task_measure(task, sample))
    start, measure = loss_measure(out / "S3Net" / "start", written(sample, out / "probe"))
    cut = lesions(start, languages, measure, seed=seed)
    mantel = [f"{r.system} {r.meta['p_value']:.3f}" for r in page.records if r.metric == "spearman_kinship"]
    lines = ["", "## Masks", "", to_markdown(page.records), f"Mantel test of kinship, p: {', '.join(mantel)}.", ""]
    for metric, table, rise in (("per", masks, mask_rise(masks)),):
        lines += ["## Wrong mask at test time", "", f"{metric} rises by {percent(rise)} points (mean over pairs)."]
        (out / "wrong.svg").write_text(standalone(mask_chart(table, languages, metric)), encoding="utf-8")
    lines += ["", "## Lesions", ""]
    for kind, table in (("weights of one language alone", cut.own), ("as many at random", cut.random)):
        found_rise = lesion_rise(cut.whole, table)
        lines.append(
            f"- {kind}: the loss per phone rises by {found_rise.own.format(digits=4)} on that language, by "
            f"{found_rise.others.format(digits=4)} on the others; difference {found_rise.difference.format(digits=4)}"
        )
    sizes = list(cut.sizes.values())
    lines.append(f"- a lesion takes {np.mean(sizes):,.0f} weights ({min(sizes):,} to {max(sizes):,})")
    for name, svg in zip(("lesions", "lesions-random"), lesion_charts(cut, languages, "loss"), strict=True):
        (out / f"{name}.svg").write_text(standalone(svg), encoding="utf-8")
    return "\n".join([*lines, ""])


def percent(estimate: Estimate) -> str:
    """Write a difference of rates in percentage points."""
    return estimate.format(scale=100.0)


if __name__ == "__main__":
    main()
