"""What a small encoder that was never pretrained learns of languages when each comes from one source: speakers and channels.

    isogloss corpus prepare debian --out CORPUS
    python benchmarks/lid.py --data CORPUS --out FOLDER

Five languages of telephone prompts (`asterisk-core-sounds`, one speaker each) are divided by a hash of the id into training, development
and test; every second prompt of other speakers and studios (`asterisk-prompt-*`) is the other source; Dutch and Czech of another
channel (`fillets-ng-data`) are unknown languages, of the development set and of the test. Prints the commands that it runs;
the figures are in FOLDER/results-ARM.jsonl. What is finished in FOLDER is taken up.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from isogloss.data.inputs import open_corpus, write_corpus
from isogloss.encoders.presets import build_encoder, preset
from isogloss.hub.save import save_model

NUM_UNKNOWN = 120  # utterances of each unknown language
COMMON = [
    *("training.updates=250", "data.seconds_per_update=60", "data.micro_batch_seconds=30", "data.max_seconds=6"),
    *("data.num_workers=0", "task.mask_probability=0"),
]
ARMS = {
    "frozen": ['start.frozen=["encoder"]', "task.layers=weighted", "task.pooling=statistics", "optim.head_lr=3e-3"],
    "tuned": [
        *("task.head_only=0", "start.frozen=[]", "optim.lr=1e-3", "optim.head_lr=1e-3", "task.pooling=attention"),
    ],
}


def divide(cuts: list[Any]) -> dict[str, list[Any]]:
    """Return the cuts of each part: train, dev and test (with their unknown language), and other."""
    parts: dict[str, list[Any]] = {name: [] for name in ("train", "dev", "test", "other", "nl", "cs")}
    for cut in cuts:
        source, language = cut.custom["source"], cut.supervisions[0].language
        part = int(hashlib.sha256(cut.id.encode()).hexdigest(), 16) % 10
        if not 0.5 <= cut.duration <= 20:
            continue
        if source.startswith("asterisk-core"):
            parts["train" if part < 7 else "dev" if part < 8 else "test"].append(cut)
        elif source.startswith("asterisk-prompt"):
            parts["other"].append(cut)
        elif part == 0 and source.startswith("fillets-ng-data") and language in parts:
            parts[language].append(cut)
    return {
        "train": parts["train"],
        "dev": [*parts["dev"], *parts["nl"][:NUM_UNKNOWN]],
        "test": [*parts["test"], *parts["cs"][:NUM_UNKNOWN]],
        "other": parts["other"][::2],
    }


def run(*arguments: object) -> None:
    """Run a verb of isogloss, and show it."""
    command = ["isogloss", *map(str, arguments)]
    print(shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def main() -> None:
    """Divide, train both arms, and test them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arm", choices=sorted(ARMS), action="append")
    options = parser.parse_args()
    out: Path = options.out
    for name, cuts in divide(list(open_corpus(options.data))).items():
        print(f"{name}: {len(cuts)} utterances, {sum(cut.duration for cut in cuts) / 60:.1f} minutes")
        if not (out / name / "cuts.jsonl.gz").exists():  # the folder alone is one of an interrupted run
            write_corpus(cuts, out / name)
    if not (out / "start").exists():
        torch.manual_seed(0)
        save_model(
            out / "start", build_encoder(preset("conformer-tiny").model_copy(update={"num_layers": 4})), None, {}
        )
    for arm in options.arm or ARMS:
        changes = [part for setting in (*COMMON, *ARMS[arm]) for part in ("--set", setting)]
        run("finetune", "lid", "--from", out / "start", "--data", out / "train", "--out", out / arm, *changes)
        results = out / f"results-{arm}.jsonl"
        results.unlink(missing_ok=True)
        corpora = ["--dev", out / "dev", "--data", out / "test", "--data", out / "other"]
        said = ["--out", out / f"said-{arm}.jsonl", "--results", results, "--name", arm]
        run("predict", "--model", out / arm / "model", *corpora, *said)


if __name__ == "__main__":
    main()
