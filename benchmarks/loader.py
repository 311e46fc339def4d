"""What the data side costs: planning, memory per million utterances, resume, decoding, and the wait in a training step.

    python benchmarks/loader.py [--rows 1000000] [--data CORPUS] [--encoder cpc] [--seconds 60]

Prints one JSON line per figure. Without `--data`, ten minutes of noise are written as 16-bit FLAC and read back.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import soundfile
import torch

from isogloss.data.index import CorpusIndex
from isogloss.data.loader import DataConfig, SpeechLoader
from isogloss.data.sampler import Planner
from isogloss.data.streams import SamplingConfig
from isogloss.encoders.presets import build_encoder, preset


def report(what: str, **figures: Any) -> None:
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps({"what": what, **rounded}), flush=True)


def private_megabytes() -> float:
    """Memory of this process that is its own: pages of mapped files can be dropped at any time and do not count."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not say how much memory is private")


def cut_line(number: int, seconds: float, suffix: str = "wav") -> str:
    name = f"utterance-{number:08d}"
    language = f"l{number % 97:02d}"
    common = f'"start": 0, "duration": {seconds}, "channel": 0'
    return (
        f'{{"id": "{name}", {common}, "supervisions": [{{"id": "{name}", "recording_id": "{name}", {common}, '
        f'"language": "{language}", "speaker": "s{number % 2000}"}}], "recording": {{"id": "{name}", "sources": '
        f'[{{"type": "file", "channels": [0], "source": "{name}.{suffix}"}}], "sampling_rate": 16000, "num_samples": '
        f'{round(seconds * 16000)}, "duration": {seconds}, "channel_ids": [0]}}, "type": "MonoCut"}}\n'
    )


def planning(folder: Path, num_rows: int) -> None:
    durations = np.random.default_rng(0).uniform(2, 20, num_rows).round(4)
    with (folder / "cuts.jsonl").open("w") as stream:
        stream.writelines(cut_line(i, float(seconds)) for i, seconds in enumerate(durations))
    begin = time.perf_counter()
    index = CorpusIndex.open(folder)
    report("index built", rows=num_rows, seconds=time.perf_counter() - begin)
    begin, memory = time.perf_counter(), private_megabytes()
    index = CorpusIndex.open(folder)
    report("index opened", seconds=time.perf_counter() - begin, private_megabytes=private_megabytes() - memory)
    for grouping, temperature in ((None, 1.0), (None, 0.5), ("speaker", 1.0)):
        settings = SamplingConfig(language_temperature=temperature)
        memory, begin = private_megabytes(), time.perf_counter()
        planner = Planner(index, settings, seed=0, grouping=grouping)
        plan = planner.next()
        first = time.perf_counter() - begin
        memory = private_megabytes() - memory
        begin, items = time.perf_counter(), 0
        while items < 50_000:
            items += sum(len(group) for group in planner.next().bins)
        report(
            "planning",
            grouping=grouping,
            temperature=temperature,
            utterances_per_second=items / (time.perf_counter() - begin),
            first_plan_seconds=first,
            private_megabytes_per_million_rows=memory / num_rows * 1e6,
        )
        state = {**plan.state, "streams": {name: [7, cursor[1]] for name, cursor in plan.state["streams"].items()}}
        begin = time.perf_counter()
        fresh = Planner(CorpusIndex.open(folder), settings, seed=0, grouping=grouping)
        fresh.load_state(state)
        row = fresh.next().bins[0][0].row
        index.cut(row)
        report(
            "resume to the first plan", grouping=grouping, temperature=temperature, seconds=time.perf_counter() - begin
        )


def noise_corpus(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    seconds = generator.uniform(2, 15, 70).round(3)
    for i, duration in enumerate(seconds):
        samples = generator.normal(0, 0.1, round(duration * 16_000))
        soundfile.write(folder / f"utterance-{i:08d}.flac", samples, 16_000, subtype="PCM_16")
    (folder / "cuts.jsonl").write_text("".join(cut_line(i, float(d), "flac") for i, d in enumerate(seconds)))
    return folder


def decoding(corpus: Path, encoder_name: str, seconds: float) -> None:
    index = CorpusIndex.open(corpus)
    common = {"path": str(corpus), "micro_batch_seconds": 20.0, "seconds_per_update": 40.0, "max_seconds": 15.0}
    for num_workers in (0, 1, 2):
        loader = SpeechLoader(index, DataConfig(**common, num_workers=num_workers), seed=0)
        updates = iter(loader)
        next(updates)
        begin, audio = time.perf_counter(), 0.0
        while time.perf_counter() - begin < min(seconds / 6, 10.0):
            audio += sum(batch.seconds for batch in next(updates).micro_batches)
        report("decoding", workers=num_workers, audio_seconds_per_second=audio / (time.perf_counter() - begin))
        updates.close()
    torch.set_num_threads(1)
    encoder = build_encoder(preset(encoder_name))
    for num_workers in (0, 1, 2):
        loader = SpeechLoader(index, DataConfig(**common, num_workers=num_workers), seed=0, prepare=encoder.prepare)
        updates = iter(loader)
        next(updates)
        loader.wait_seconds, begin, steps = 0.0, time.perf_counter(), 0
        while time.perf_counter() - begin < seconds / 3:
            for batch in next(updates).micro_batches:
                encoder(batch.audio).last.values_ND.square().mean().backward()
            steps += 1
        total = time.perf_counter() - begin
        report(
            "training step",
            encoder=encoder_name,
            workers=num_workers,
            steps=steps,
            wait_share=loader.wait_seconds / total,
        )
        updates.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--encoder", default="cpc")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        large, small = Path(scratch, "large"), Path(scratch, "small")
        large.mkdir()
        small.mkdir()
        planning(large, options.rows)
        decoding(options.data or noise_corpus(small), options.encoder, options.seconds)


if __name__ == "__main__":
    main()
