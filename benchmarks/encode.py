"""Feature extraction with wav2vec 2.0 BASE against Hugging Face's `Wav2Vec2Model`: many short clips, and one long recording.

    python benchmarks/encode.py --pairs 5 --output benchmarks/results/encode.md

Both encode the same noise with the same random weights, in fp32 without gradients, all hidden states kept. Runs alternate in
one process (A B A B) since the machine may be shared; ratios are taken pair by pair, in wall time and in CPU time (which
counts only what this process computed). Hugging Face gets the short clips as a user would give them: in padded batches of
eight, in the order in which they come, with the attention mask where the model wants one, and one by one. In padded batches
its group-norm models give other features than for each clip alone; that is timed, not mended. The share of the machine's
matrix-product rate, of both, says how much faster a program could be that does the same products.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor
from train_step import encoder_flops, matmul_rate

from isogloss.core.types import Packed
from isogloss.encoders.wave import WaveEncoder
from isogloss.hub.load import load_encoder

RATE = 16_000
BATCH = 8  # clips in a padded batch
PACK_SECONDS = 60.0  # audio in a packed batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--shortest", type=float, default=0.5, help="seconds")
    parser.add_argument("--longest", type=float, default=6.0, help="seconds")
    parser.add_argument("--long-recording", type=float, default=120.0, help="seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", nargs="+", default=["group", "layer"], choices=["group", "layer"])
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [
        "| model | audio | against | wall time: median (smallest – largest) | CPU time: median | share of the rate, ours | theirs "
        "| largest relative difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant in args.variants:
        theirs, ours = both_models(variant)
        generator = torch.Generator().manual_seed(1)
        spread = torch.rand(args.clips, generator=generator) * (args.longest - args.shortest) + args.shortest
        clips = [torch.randn(int(RATE * seconds), generator=generator) for seconds in spread.tolist()]
        long = [torch.randn(int(RATE * args.long_recording), generator=generator)]
        cases: list[tuple[str, list[Tensor], str, Callable[[list[Tensor]], object]]] = [
            ("short clips", clips, f"padded batches of {BATCH}", lambda audio, m=theirs: padded(m, audio)),
            ("short clips", clips, "one by one", lambda audio, m=theirs: singles(m, audio)),
            ("long recording", long, "whole", lambda audio, m=theirs: singles(m, audio)),
        ]
        for name, audio, how, run_theirs in cases:
            wall, cpu, our_cpu, rate = compare(
                lambda audio=audio, m=ours: packed(m, audio), lambda a=audio, r=run_theirs: r(a), args.pairs
            )
            flops = sum(sum(encoder_flops(ours.config, len(item))[:2]) for item in audio)
            share = flops / our_cpu / rate
            seconds = sum(len(item) for item in audio) / RATE
            shape = f"{len(audio)} × {args.shortest:g} to {args.longest:g} s" if len(audio) > 1 else f"{seconds:g} s"
            lines.append(
                f"| {variant} norm | {name}, {shape} | {how} | {statistics.median(wall):.2f} ({min(wall):.2f} – {max(wall):.2f}) "
                f"| {statistics.median(cpu):.2f} | {share:.2f} | {share / statistics.median(cpu):.2f} "
                f"| {difference(theirs, ours, audio):.1e} |"
            )
            print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(table)
    if args.output:
        command = (
            f"python benchmarks/encode.py --pairs {args.pairs} --clips {args.clips} "
            f"--long-recording {args.long_recording:g} --threads {args.threads}"
        )
        args.output.write_text(
            "# Feature extraction: times as fast as Hugging Face\n\n"
            f"`{command}` on {machine()}, {args.threads} threads, other work on the machine. wav2vec 2.0 BASE sizes, fp32, "
            f"{args.pairs} interleaved pairs. CPU time counts only this process. The difference is between states for each utterance "
            f"alone. The rate is that of a large fp32 matrix product in the same minutes; padding is not counted as work.\n\n{table}\n",
            encoding="utf-8",
        )


def both_models(variant: str) -> tuple[transformers.Wav2Vec2Model, WaveEncoder]:
    is_layer = variant == "layer"
    torch.manual_seed(0)
    theirs = transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(feat_extract_norm=variant, conv_bias=is_layer, do_stable_layer_norm=is_layer)
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_encoder(folder)
    assert isinstance(ours, WaveEncoder)
    return theirs, ours


@torch.no_grad()
def packed(encoder: WaveEncoder, audio: list[Tensor]) -> None:
    batch: list[Tensor] = []
    for item in audio:
        if batch and sum(map(len, batch)) + len(item) > PACK_SECONDS * RATE:
            encoder(Packed.from_list(batch))
            batch = []
        batch.append(item)
    encoder(Packed.from_list(batch))


@torch.no_grad()
def padded(model: transformers.Wav2Vec2Model, audio: list[Tensor]) -> None:
    for start in range(0, len(audio), BATCH):
        items = audio[start : start + BATCH]
        values = torch.nn.utils.rnn.pad_sequence(items, batch_first=True)
        lengths = torch.tensor([len(item) for item in items])
        mask = (torch.arange(values.shape[1]) < lengths[:, None]).long()
        is_layer = model.config.feat_extract_norm == "layer"
        model(values, attention_mask=mask if is_layer else None, output_hidden_states=True)


@torch.no_grad()
def singles(model: transformers.Wav2Vec2Model, audio: list[Tensor]) -> None:
    for item in audio:
        model(item[None], output_hidden_states=True)


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], pairs: int
) -> tuple[list[float], list[float], float, float]:
    """Return the ratios of wall and CPU time, the median CPU seconds of ours, and the median rate of matrix products."""
    wall, cpu, our_cpu, rates = [], [], [], []
    for pair in range(-1, pairs):
        times = {}
        rate = matmul_rate()
        for name, run in (("a", ours), ("b", theirs)) if pair % 2 else (("b", theirs), ("a", ours)):
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            times[name] = time.perf_counter() - start, time.process_time() - start_cpu
        if pair >= 0:  # the first pair warms up
            wall.append(times["b"][0] / times["a"][0])
            cpu.append(times["b"][1] / times["a"][1])
            our_cpu.append(times["a"][1])
            rates.append(rate)
    return wall, cpu, statistics.median(our_cpu), statistics.median(rates)


@torch.no_grad()
def difference(theirs: transformers.Wav2Vec2Model, ours: WaveEncoder, audio: list[Tensor]) -> float:
    shown = audio[:4]
    states = [state.split() for state in ours(shown).states]
    worst = 0.0
    for index, item in enumerate(shown):
        out = theirs(item[None], output_hidden_states=True)
        for state, expected in zip(states, [*out.hidden_states[:-1], out.last_hidden_state], strict=True):
            worst = max(worst, float((state[index] - expected[0]).norm() / expected[0].norm()))
    return worst


def machine() -> str:
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model} ({torch.backends.cpu.get_cpu_capability()}), torch {torch.__version__}, transformers {transformers.__version__}"


if __name__ == "__main__":
    main()
