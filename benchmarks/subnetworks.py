"""Sub-networks per language beside their rivals and controls, on real speech: phone error, cost, overlap, lesions.

    python benchmarks/subnetworks.py --debian CORPUS --field FOLDER --out RUN [--budget small|full] [--seed 1]

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
import torch
from lhotse import CutSet, fastcopy

from isogloss.adapt.subnetwork import Config as SubnetworkConfig
from isogloss.adapt.subnetwork import Importance, find_subnetworks
from isogloss.core.rng import derive_seed
from isogloss.core.types import Packed, SpeechBatch
from isogloss.core.vocabulary import ipa_segments
from isogloss.data.audio import read_audio
from isogloss.data.index import CorpusIndex
from isogloss.data.inputs import open_corpus
from isogloss.data.phonemes import can_phonemize, phonemize_words
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import costs, matrices
from isogloss.evaluation.bootstrap import Estimate
from isogloss.evaluation.language_reports import (
    LanguageCounts,
    gain_by_hours,
    mean_difference,
    transfer_and_interference,
)
from isogloss.evaluation.subnetworks import Overlap, kinship, lesioned, mask_overlap, relatedness
from isogloss.hub.load import load_model
from isogloss.hub.save import save_model
from isogloss.losses.edit_distance import edit_distance
from isogloss.objectives.base import Objective, build_objective
from isogloss.training.loop import train
from isogloss.training.recipe import parse_recipe
from isogloss.training.start import start_learner

# Family, branch, group: Glottolog's classification, as far as two of these languages share it.
KIN = {
    "be": ("Indo-European", "Balto-Slavic", "East Slavic"),
    "ru": ("Indo-European", "Balto-Slavic", "East Slavic"),
    "bg": ("Indo-European", "Balto-Slavic", "South Slavic"),
    "cs": ("Indo-European", "Balto-Slavic", "West Slavic"),
    "pl": ("Indo-European", "Balto-Slavic", "West Slavic"),
    "da": ("Indo-European", "Germanic", "North Germanic"),
    "en": ("Indo-European", "Germanic", "West Germanic"),
    "nl": ("Indo-European", "Germanic", "West Germanic"),
    "es": ("Indo-European", "Italic", "Western Romance"),
    "fr": ("Indo-European", "Italic", "Western Romance"),
    "it": ("Indo-European", "Italic", "Italo-Romance"),
    "ro": ("Indo-European", "Italic", "Eastern Romance"),
    "mdw": ("Atlantic-Congo", "Bantu", "Mboshi"),
    "nst": ("Sino-Tibetan", "Kuki-Chin-Naga", "Tangkhulic"),
}
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


class Scorer:
    """Phone errors of a model on cuts, greedy decoding."""

    def __init__(self, model: Path) -> None:
        loaded = load_model(model)
        assert loaded.objective_tree is not None
        self.encoder = loaded.encoder
        self.objective: Any = build_objective(loaded.objective_tree, loaded.encoder)
        self.objective.take_heads(loaded.head_tensors)
        self.objective.eval()

    @torch.no_grad()
    def score(self, encoder: Encoder, cuts: Sequence[Any]) -> tuple[list[list[int]], float]:
        """Return (errors, phones) of every cut, and the CTC loss per phone."""
        counts, loss, num_phones = [], 0.0, 0
        for start in range(0, len(cuts), 16):
            batch = as_batch(cuts[start : start + 16], encoder)
            terms = self.objective(encoder, batch)
            loss, num_phones = loss + float(terms.total), num_phones + terms.num_targets
            for text, guess in zip(batch.text or [], self.objective.transcribe(encoder, batch), strict=True):
                reference = ipa_segments(text or "")
                counts.append([edit_distance(reference, guess.split()), len(reference)])
        return counts, loss / max(num_phones, 1)


def as_batch(cuts: Sequence[Any], encoder: Encoder) -> SpeechBatch:
    """Read cuts as one batch."""
    waveforms = [encoder.prepare(torch.from_numpy(read_audio(cut))) for cut in cuts]
    return SpeechBatch(
        audio=Packed.from_list(waveforms),
        ids=[cut.id for cut in cuts],
        languages=[cut.supervisions[0].language for cut in cuts],
        seeds_B=torch.zeros(len(cuts), dtype=torch.int64),
        text=[cut.supervisions[0].text for cut in cuts],
    )


def at_most(cuts: Sequence[Any], seconds: float) -> list[Any]:
    """Return the first cuts up to so many seconds."""
    chosen, total = [], 0.0
    for cut in cuts:
        if total >= seconds:
            break
        chosen.append(cut)
        total += cut.duration
    return chosen


def encoder_for(scorer: Scorer, language: str) -> Encoder:
    """Return the encoder as the language uses it."""
    return scorer.encoder if scorer.encoder.edits is None else scorer.encoder.for_language(language)


def score_arm(model: Path, part: Part, out: Path) -> dict[str, Any]:
    """Score a model on every language's development and test cuts under its own language."""
    if out.exists():
        known: dict[str, Any] = json.loads(out.read_text())
        return known
    scorer = Scorer(model)
    result: dict[str, Any] = {"dev": {}, "test": {}}
    for language in part.test:
        encoder = encoder_for(scorer, language)
        for side, cuts in (("dev", part.dev[language]), ("test", part.test[language])):
            result[side][language], _ = scorer.score(encoder, cuts)
    result["weights"] = sum(p.numel() for name, p in scorer.encoder.named_parameters() if ".edit." not in name)
    edited = scorer.encoder.edits is not None
    result["costs"] = {k: v.model_dump() for k, v in costs(scorer.encoder).items()} if edited else {}
    out.write_text(json.dumps(result))
    return result


def matrix(path: Path, compute: Any) -> dict[str, Any]:
    """Compute a table once."""
    if not path.exists():
        path.write_text(json.dumps(compute()))
    known: dict[str, Any] = json.loads(path.read_text())
    return known


def wrong_masks(model: Path, part: Part, seconds: float) -> dict[str, Any]:
    """Return the phone error of each language (column) under the mask of each (row)."""
    scorer = Scorer(model)
    table: dict[str, Any] = {}
    assert scorer.encoder.edits is not None
    for mask in scorer.encoder.edits.languages:
        encoder, table[mask] = scorer.encoder.for_language(mask), {}
        for language in part.dev:
            counts, _ = scorer.score(encoder, at_most(part.dev[language], seconds))
            table[mask][language] = counts
    return table


def lesions(start: Path, part: Part, seconds: float, seed: int) -> dict[str, Any]:
    """Return how much the dense model's loss rises on each language when the weights unique to one are taken, or as many others."""
    scorer = Scorer(start)
    assert scorer.encoder.edits is not None
    languages = scorer.encoder.edits.languages
    cuts = {language: at_most(part.dev[language], seconds) for language in part.dev}
    table: dict[str, Any] = {"whole": {k: scorer.score(scorer.encoder, v)[1] for k, v in cuts.items()}}
    for kind, at_random in (("unique", None), ("random", seed)):
        table[kind] = {}
        for lesion in languages:
            without = lesioned(scorer.encoder, lesion, at_random=at_random)
            table[kind][lesion] = {k: scorer.score(without, v)[1] for k, v in cuts.items()}
    table["size"] = {
        lesion: sum(
            int((a.weight != b.weight).sum())
            for a, b in zip(
                matrices(lesioned(scorer.encoder, lesion)).values(), matrices(scorer.encoder).values(), strict=True
            )
        )
        for lesion in languages
    }
    return table


def counts_of(scores: Mapping[str, Any], side: str = "test") -> dict[str, LanguageCounts]:
    """Return a system's counts by language."""
    return {language: LanguageCounts(np.array(counts, float)) for language, counts in scores[side].items()}


def rate(counts: LanguageCounts) -> float:
    """Return the phone error rate."""
    return float(counts.counts_U2[:, 0].sum() / counts.counts_U2[:, 1].sum())


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
    corpus.mkdir(exist_ok=True)
    if not (corpus / "cuts.jsonl.gz").exists():
        CutSet.from_cuts([cut for cuts in part.train.values() for cut in cuts]).to_file(corpus / "cuts.jsonl.gz")
    minutes = {language: sum(cut.duration for cut in cuts) / 60 for language, cuts in part.train.items()}
    print({k: round(v, 1) for k, v in minutes.items()}, flush=True)

    warm = run_arm(recipe_tree(budget, corpus, seed, budget.warmup_updates, 1e-3), out / "warm-up", "warm-up")
    tree = {**recipe_tree(budget, corpus, seed, budget.updates, 2e-3), "encoder": {}, "objective": {}}  # the warm-up's
    scores = {"warm-up": score_arm(warm, part, out / "warm-up" / "scores.json")}
    for arm in budget.arms:
        if arm == ALONE:
            scores[arm] = monolingual(budget, corpus, part, minutes, out / arm, seed, warm)
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
        scores[arm] = score_arm(run_arm(own, folder, arm), part, folder / "scores.json")
        print(arm, round(np.mean([rate(c) for c in counts_of(scores[arm]).values()]), 4), flush=True)
    s3net = out / "S3Net"
    wrong = matrix(out / "wrong.json", lambda: wrong_masks(s3net / "model", part, budget.probe_seconds))
    hurt = matrix(out / "lesions.json", lambda: lesions(s3net / "start", part, budget.probe_seconds, seed))
    overlaps = {
        arm: mask_overlap(load_model(out / arm.replace(" ", "-") / "start").encoder)
        for arm in budget.arms
        if arm in MASKED
    }
    text = report(budget, options.sparsity, minutes, scores, wrong, hurt, overlaps, out)
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text)


def monolingual(
    budget: Budget, corpus: Path, part: Part, minutes: Mapping[str, float], out: Path, seed: int, warm: Path
) -> dict[str, Any]:
    """Train one model per language from scratch on the share of all updates that the multilingual models gave the language."""
    shares = {language: minutes[language] ** 0.5 for language in minutes}
    labels = (load_model(warm).objective_tree or {})["labels"]
    result: dict[str, Any] = {"dev": {}, "test": {}, "costs": {}}
    for language in minutes:
        share = shares[language] / sum(shares.values())
        updates = max(20, round(share * (budget.warmup_updates + budget.updates)))
        tree = recipe_tree(budget, corpus, seed, updates, 2e-3)
        tree["data"]["languages"] = [language]
        tree["objective"]["labels"] = labels
        model = run_arm(tree, out / language, language)
        only = Part(*({language: side[language]} for side in (part.train, part.dev, part.test)))
        scores = score_arm(model, only, out / language / "scores.json")
        for side in ("dev", "test"):
            result[side] |= scores[side]
        result["weights"] = scores["weights"]
    return result


def report(
    budget: Budget,
    sparsity: float,
    minutes: Mapping[str, float],
    scores: Mapping[str, Any],
    wrong: Mapping[str, Any],
    hurt: Mapping[str, Any],
    overlaps: Mapping[str, Overlap],
    out: Path,
) -> str:
    """Return the report; sub-networks stand beside random masks and the dense model that is told the language."""
    counts = {arm: counts_of(own) for arm, own in scores.items()}
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
        cells += [f"{100 * np.mean([rate(own[k]) for k in names]):.1f}" for names in groups.values()]
        cells.append("" if arm == "dense" else percent(mean_difference(own, counts["dense"], languages)))
        cost = scores[arm]["costs"].values()
        weights = scores[arm]["weights"]
        cells.append(f"{np.mean([c['active'] for c in cost]) if cost else weights:,.0f}")
        stored = np.mean([c["stored_bytes"] for c in cost]) if cost else 4.0 * weights if arm == ALONE else 0.0
        cells.append(f"{stored / 1000:,.1f} kB")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "## By language",
        "",
        "| language | minutes | " + " | ".join(counts) + " |",
        "|" + "---|" * (2 + len(counts)),
    ]
    for language in languages:
        cells = [f"{100 * rate(own[language]):.1f}" for own in counts.values()]
        lines.append(f"| {language} | {minutes[language]:.1f} | " + " | ".join(cells) + " |")
    lines += ["", "## Paired differences (percentage points; negative: the first is better)", ""]
    others = [arm for arm in counts if arm not in ("S3Net", "warm-up")]
    lines += [
        f"- S3Net − {arm}: "
        + "; ".join(f"{n} {percent(mean_difference(counts['S3Net'], counts[arm], own))}" for n, own in groups.items())
        for arm in others
    ]
    if ALONE in counts:
        lines += ["", "## Transfer and interference", "", *transfer_lines(scores, counts)]
    gained = gain_by_hours(counts["dense"], counts["S3Net"], {k: v / 60 for k, v in minutes.items()})
    lines += [
        "",
        f"Spearman correlation of the gain of S3Net over dense with hours heard: {gained.correlation.format(digits=2)}.",
    ]
    lines += ["", "## Masks", "", *overlap_lines(overlaps)]
    lines += ["", "## Wrong mask at test time", "", *wrong_lines(wrong)]
    lines += ["", "## Lesions", "", *lesion_lines(hurt)]
    draw(overlaps["S3Net"], wrong, hurt, out)
    return "\n".join(lines) + "\n"


def percent(estimate: Estimate) -> str:
    """Write a difference of rates in percentage points."""
    return estimate.format(scale=100.0)


def transfer_lines(scores: Mapping[str, Any], counts: Mapping[str, dict[str, LanguageCounts]]) -> list[str]:
    """Tell both groups of languages apart, by the development set."""
    mono, multi = counts_of(scores[ALONE], "dev"), counts_of(scores["dense"], "dev")
    helped = {language: rate(multi[language]) < rate(mono[language]) for language in mono}
    lines = []
    for arm in [arm for arm in counts if arm not in ("dense", ALONE, "warm-up")]:
        found = transfer_and_interference(counts[ALONE], counts["dense"], counts[arm], helped)
        for name, group in (("transfer", found.transfer), ("interference", found.interference)):
            if group is not None:
                lines.append(
                    f"- {name} ({', '.join(group.languages)}): sharing gains {percent(group.shared)}, {arm} then {percent(group.adapted)}"
                )
    return lines


def overlap_lines(overlaps: Mapping[str, Overlap]) -> list[str]:
    """Tell the overlap of what is left out, its random expectation, and whether kin share more."""
    lines = []
    for arm, overlap in overlaps.items():
        pairs = overlap.pairs()
        kin = kinship(KIN, overlap.languages)
        line = f"- {arm}: mean overlap {np.mean([p[2] for p in pairs]):.3f}, at random {np.mean([p[3] for p in pairs]):.3f}"
        off_diagonal = overlap.iou_LL[~np.eye(len(kin), dtype=bool)]
        if np.ptp(off_diagonal) > 0:
            found = relatedness(overlap.iou_LL, kin)
            line += f"; Spearman with shared levels of classification {found.correlation.format(digits=2)}, Mantel p = {found.p_value:.3f}"
        lines.append(line)
    return lines


def wrong_lines(wrong: Mapping[str, Any]) -> list[str]:
    """Tell the error under the own and under other masks."""

    def per(counts: Sequence[Sequence[int]]) -> float:
        return float(np.sum([c[0] for c in counts]) / np.sum([c[1] for c in counts]))

    own = [per(wrong[k][k]) for k in wrong]
    other = [per(wrong[m][k]) for m in wrong for k in wrong if m != k]
    return [f"Own mask {100 * np.mean(own):.1f} %, another language's {100 * np.mean(other):.1f} % (mean over pairs)."]


def lesion_lines(hurt: Mapping[str, Any]) -> list[str]:
    """Tell whom the loss of a language's own weights hurts."""
    lines = []
    for kind in ("unique", "random"):
        rise = {m: {k: hurt[kind][m][k] - hurt["whole"][k] for k in hurt["whole"]} for m in hurt[kind]}
        own = np.array([rise[m][m] for m in rise])
        other = np.array([np.mean([rise[m][k] for k in rise if k != m]) for m in rise])
        rng = np.random.default_rng(0)
        chosen = rng.integers(len(own), size=(2000, len(own)))
        low, high = np.quantile((own - other)[chosen].mean(1), [0.025, 0.975])
        name = "weights unique to a language" if kind == "unique" else "as many others at random"
        lines.append(
            f"- {name}: the loss per phone rises by {own.mean():.4f} on that language and {other.mean():.4f} on the others; "
            f"difference {np.mean(own - other):.4f} [{low:.4f}, {high:.4f}] over {len(own)} lesions"
        )
    sizes = list(hurt["size"].values())
    return [*lines, f"- a lesion takes {np.mean(sizes):,.0f} weights ({min(sizes):,} to {max(sizes):,})"]


def draw(overlap: Overlap, wrong: Mapping[str, Any], hurt: Mapping[str, Any], out: Path) -> None:
    """Write the heat maps, kin side by side."""
    from isogloss.benchmark.heat_map import heat_map

    order = sorted(range(len(overlap.languages)), key=lambda i: KIN[overlap.languages[i]])
    names = [overlap.languages[i] for i in order]
    above = [[float("nan") if i == j else float(overlap.iou_LL[i, j]) for j in order] for i in order]
    expected = float(overlap.expected_LL[0, 1])
    title = f"Overlap of what is left out (at random {expected:.2f})"
    (out / "overlap.svg").write_text(heat_map(title, names, names, above, reference=expected))
    rise = [[hurt["unique"][m][k] - hurt["whole"][k] for k in names] for m in names]
    (out / "lesions.svg").write_text(
        heat_map("Loss after a lesion", names, names, rise, x_label="tested on", y_label="weights of", digits=2)
    )
    errors = [
        [100 * float(np.sum([c[0] for c in wrong[m][k]]) / np.sum([c[1] for c in wrong[m][k]])) for k in names]
        for m in names
    ]
    lift = [[value - errors[j][j] for j, value in enumerate(row)] for row in errors]
    (out / "wrong.svg").write_text(
        heat_map(
            "Phone errors under another's mask", names, names, lift, x_label="tested on", y_label="mask of", digits=0
        )
    )


if __name__ == "__main__":
    main()
