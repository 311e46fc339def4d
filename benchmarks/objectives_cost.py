"""What an update of data2vec 2.0, DinoSR and SpidR costs, against data2vec 1 and HuBERT: same encoder, same audio, one run, on a CPU.

    python benchmarks/objectives_cost.py --rounds 7

Forward, backward, fused AdamW, codebooks and teacher, in fp32 without dropout or layer drop. All objectives take turns in one
process on the same audio, drawn anew for each round; ratios are taken round by round, in CPU time, since the machine may be
shared, and given as the median (least to most). Peak memory is what an update adds to the resting process, which holds the
weights, teachers and optimiser states of all. data2vec 2.0 has the same sizes with ALiBi. HuBERT is given its units: clustering
them is not counted.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isogloss.core.types import Packed, SpeechBatch
from isogloss.encoders.presets import build_encoder
from isogloss.encoders.wave import WaveConfig
from isogloss.objectives.base import build_objective

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0, "layerdrop": 0.0}
SAMPLE_RATE = 16_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--utterances", type=int, default=6)
    parser.add_argument("--shortest", type=float, default=2.0, help="seconds")
    parser.add_argument("--longest", type=float, default=10.0, help="seconds")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="write the table here as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    sizes = {"width": args.width, "num_layers": args.layers, "num_heads": 4, "ffn_width": 4 * args.width}
    base = NO_DROPOUT | sizes | {"conv_channels": (args.width,) * 7, "feature_gradient_scale": 1.0}
    base |= {"position": "conv_stack", "position_kernel": 19, "position_layers": 5}
    top = max(1, 2 * args.layers // 3)
    decoder = {"top_layers": top, "decoder_width": args.width // 2, "decoder_dropout": 0.0}
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "data2vec": ({"name": "data2vec", "top_layers": top}, {}),
        "HuBERT": ({"name": "hubert", "num_units": 100, "final_width": args.width}, {}),
        "DinoSR": ({"name": "dinosr", "top_layers": top}, {}),
        "SpidR": ({"name": "spidr", "top_layers": top}, {"qkv_bias": False}),
        **{
            f"data2vec 2.0, M = {m}": (
                {"name": "data2vec2", "num_masks": m, **decoder},
                {"relative": {"kind": "alibi"}},
            )
            for m in (1, 4, 8)
        },
    }
    steps = {name: make_step(tree, WaveConfig.model_validate(base | own)) for name, (tree, own) in cases.items()}
    wall: dict[str, list[float]] = {name: [] for name in cases}
    cpu: dict[str, list[float]] = {name: [] for name in cases}
    peak: dict[str, list[int]] = {name: [] for name in cases}
    for turn in range(-1, args.rounds):
        audio = [torch.randn(n) for n in draw_lengths(args, turn)]
        names = list(steps)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds, cpu_seconds, added = measure(lambda step=steps[name], audio=audio: step(audio))  # type: ignore[misc]
            if turn >= 0:  # the first round warms up
                wall[name].append(seconds)
                cpu[name].append(cpu_seconds)
                peak[name].append(added)
        print(f"round {turn + 1} of {args.rounds}", flush=True)
    table = report(args, wall, cpu, peak)
    print(table)
    if args.out is not None:
        args.out.write_text(table, encoding="utf-8")


def make_step(tree: dict[str, Any], config: WaveConfig) -> Callable[[list[Tensor]], None]:
    torch.manual_seed(0)
    encoder = build_encoder(config).train()
    objective = build_objective(tree, encoder).train()
    parameters = [p for module in (encoder, objective) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def step(audio: list[Tensor]) -> None:
        names = [str(i) for i in range(len(audio))]
        units = Packed.from_list([torch.randint(100, (encoder.num_frames(len(item)),)) for item in audio])
        batch = SpeechBatch(Packed.from_list(audio), names, [None] * len(audio), torch.arange(len(audio)), units=units)
        terms = objective(encoder, batch)
        (terms.total / terms.num_targets).backward()
        optimizer.step()
        objective.after_step(0.1)
        objective.follow(encoder, 0.1)
        optimizer.zero_grad(set_to_none=True)

    return step


def draw_lengths(args: argparse.Namespace, turn: int) -> list[int]:
    seconds = torch.rand(args.utterances, generator=torch.Generator().manual_seed(100 + turn))
    return [int(SAMPLE_RATE * (args.shortest + (args.longest - args.shortest) * s)) for s in seconds.tolist()]


def measure(step: Callable[[], None]) -> tuple[float, float, int]:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident size so far
    before = _status_bytes("VmRSS")
    start, start_cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - start, time.process_time() - start_cpu, _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def report(
    args: argparse.Namespace, wall: dict[str, list[float]], cpu: dict[str, list[float]], peak: dict[str, list[int]]
) -> str:
    def ratios(name: str, other: str) -> str:
        values = [mine / theirs for mine, theirs in zip(cpu[name], cpu[other], strict=True)]
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    lines = [
        f"{args.rounds} rounds, {args.utterances} utterances of {args.shortest:g} to {args.longest:g} s, {args.layers} layers of width "
        f"{args.width}, {args.threads} thread(s), torch {torch.__version__}. Ratios of CPU time, median (least to most).",
        "",
        "| objective | seconds an update | CPU seconds | against data2vec | against HuBERT | peak memory it adds, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name in cpu:
        added = statistics.median(peak[name]) / 2**20
        lines.append(
            f"| {name} | {statistics.median(wall[name]):.2f} | {statistics.median(cpu[name]):.2f} | {ratios(name, 'data2vec')} | "
            f"{ratios(name, 'HuBERT')} | {added:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
