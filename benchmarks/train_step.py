"""One training step of wav2vec 2.0 BASE against Hugging Face's `Wav2Vec2ForPreTraining`, on variable lengths, on a CPU.

    python benchmarks/train_step.py --variant layer --pairs 9

Forward, backward and fused AdamW in fp32 without dropout; Hugging Face with its own masks and negatives on a padded batch
with its attention mask, isogloss on the packed batch. Steps alternate in one process (A B A B) on the same audio, drawn anew
for each pair; the ratio is taken pair by pair, since the machine may be shared. Peak memory is what a step adds to the resting
process (weights and optimiser states of both). The share of the matrix-product rate counts the products that the packed
batch needs, forward and backward, over the step's CPU time, against a large product timed beside each pair; CPU time, since
wall time on a shared machine says more about the neighbours. For the same reason CPU time is compared too; with several
threads on a busy machine it contains waiting, so `--threads 1` gives the cleanest ratio there.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

from isogloss.core.types import Packed, SpeechBatch
from isogloss.encoders.wave import WaveConfig, WaveEncoder
from isogloss.nn.product import multiply
from isogloss.objectives.wav2vec2 import Config, Wav2Vec2

SAMPLE_RATE = 16_000
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0, "layerdrop": 0.0}
LEARNING_RATE = 1e-5


@dataclass
class Steps:
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=["layer", "group"], default="layer")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--utterances", type=int, default=6)
    parser.add_argument("--shortest", type=float, default=2.0, help="seconds")
    parser.add_argument("--longest", type=float, default=15.0, help="seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12, help="fewer for a quick look")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    config = wave_config(args.variant, args.layers)
    ours = our_step(config)
    theirs = hugging_face_step(config)
    a, b, rates, shares, audio_seconds, frames_wasted = Steps(), Steps(), [], [], [], []
    for pair in range(-1, args.pairs):
        lengths = draw_lengths(args, pair)
        audio = [torch.randn(n) for n in lengths]
        rate = matmul_rate()
        first, second = ((ours, a), (theirs, b)) if pair % 2 else ((theirs, b), (ours, a))
        for step, record in (first, second):
            seconds, cpu, peak = measure(lambda step=step, audio=audio: step(audio))
            if pair >= 0:  # the first pair warms up
                record.seconds.append(seconds)
                record.cpu_seconds.append(cpu)
                record.peak_bytes.append(peak)
        if pair < 0:
            continue
        flops = step_flops(config, lengths)
        rates.append(rate)
        shares.append(flops / a.cpu_seconds[-1] / rate)
        audio_seconds.append(sum(lengths) / SAMPLE_RATE)
        frames_wasted.append(1 - sum(lengths) / (max(lengths) * len(lengths)))
        print(
            f"pair {pair + 1}: {audio_seconds[-1]:.1f} s of audio, isogloss {a.seconds[-1]:.2f} s, "
            f"Hugging Face {b.seconds[-1]:.2f} s, ratio {b.seconds[-1] / a.seconds[-1]:.2f}",
            flush=True,
        )
    print(report(args, a, b, rates, shares, audio_seconds, frames_wasted))


def wave_config(variant: str, layers: int) -> WaveConfig:
    is_layer = variant == "layer"
    tree = {"conv_norm": variant, "conv_bias": is_layer, "norm_first": is_layer, "num_layers": layers}
    return WaveConfig.model_validate(NO_DROPOUT | tree | {"feature_gradient_scale": 1.0})


def draw_lengths(args: argparse.Namespace, pair: int) -> list[int]:
    seconds = torch.rand(args.utterances, generator=torch.Generator().manual_seed(100 + pair))
    return [int(SAMPLE_RATE * (args.shortest + (args.longest - args.shortest) * s)) for s in seconds.tolist()]


def our_step(config: WaveConfig) -> Callable[[list[Tensor]], None]:
    encoder = WaveEncoder(config)
    objective = Wav2Vec2(Config(feature_penalty=0.0, feature_dropout=0.0), encoder)
    parameters = [*encoder.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)

    def step(audio: list[Tensor]) -> None:
        names = [str(i) for i in range(len(audio))]
        batch = SpeechBatch(Packed.from_list(audio), names, [None] * len(audio), torch.arange(len(audio)))
        terms = objective(encoder, batch)
        (terms.total / terms.num_targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def hugging_face_step(config: WaveConfig) -> Callable[[list[Tensor]], None]:
    is_layer = config.conv_norm == "layer"
    model = Wav2Vec2ForPreTraining(
        Wav2Vec2Config(
            feat_extract_norm=config.conv_norm,
            conv_bias=is_layer,
            do_stable_layer_norm=is_layer,
            num_hidden_layers=config.num_layers,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            feat_quantizer_dropout=0.0,
            final_dropout=0.0,
            layerdrop=0.0,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step(audio: list[Tensor]) -> None:
        values = torch.nn.utils.rnn.pad_sequence(audio, batch_first=True)
        lengths = torch.tensor([len(item) for item in audio])
        attention_mask = (torch.arange(values.shape[1]) < lengths[:, None]).long()
        num_frames = int(model._get_feat_extract_output_lengths(values.shape[1]))
        frame_mask = model._get_feature_vector_attention_mask(num_frames, attention_mask)
        shape = (len(audio), num_frames)
        mask = _compute_mask_indices(shape, 0.65, 10, attention_mask=frame_mask, min_masks=2)
        negatives = torch.from_numpy(_sample_negative_indices(shape, 100, mask))
        mask_time = torch.from_numpy(mask)
        out = model(
            values, attention_mask=attention_mask, mask_time_indices=mask_time, sampled_negative_indices=negatives
        )
        (out.loss / mask_time.sum()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


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


def matmul_rate(size: int = 2048, repeats: int = 4) -> float:
    """Floating-point operations a CPU second and thread of a large fp32 product, by the better of torch's two libraries."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for product in (torch.mm, multiply):  # MKL, and what isogloss asks
        for _ in range(repeats):
            start = time.process_time()
            product(left, right)
            best = min(best, time.process_time() - start)
    return 2 * size**3 / best


def encoder_flops(config: WaveConfig, num_samples: int) -> tuple[float, float, int]:
    """Products of one forward pass over a recording: of the first convolution, of all the rest; and the number of frames."""
    n, before, convolutions = num_samples, 1, []
    for channels, kernel, stride in zip(config.conv_channels, config.conv_kernels, config.conv_strides, strict=True):
        n = (n - kernel) // stride + 1
        convolutions.append(2.0 * n * kernel * before * channels)
        before = channels
    width = config.width
    layer = 2 * width * (4 * width + 2 * config.ffn_width) + 4 * n * width
    position = 2 * config.position_kernel * width * width / config.position_groups
    rest = sum(convolutions[1:]) + n * (2 * before * width + position + config.num_layers * layer)
    return convolutions[0], rest, n


def step_flops(config: WaveConfig, lengths: list[int]) -> float:
    """Products of one step: forward, gradients of weights and of inputs (the first convolution needs no input gradient)."""
    total, width, latents = 0.0, config.width, config.conv_channels[-1]
    for num_samples in lengths:
        first, rest, n = encoder_flops(config, num_samples)
        head = 0.49 * n * 2 * (latents * 640 + 640 * 128 + 256 * 256 + width * 256 + 0.49 * n * 256)
        total += 2 * first + 3 * (rest + head)
    return total


def report(
    args: argparse.Namespace,
    a: Steps,
    b: Steps,
    rates: list[float],
    shares: list[float],
    audio_seconds: list[float],
    wasted: list[float],
) -> str:
    def spread(values: list[float], form: str = ".2f") -> str:
        return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"

    ratios = [y / x for x, y in zip(a.seconds, b.seconds, strict=True)]
    cpu_ratios = [y / x for x, y in zip(a.cpu_seconds, b.cpu_seconds, strict=True)]
    gib = [[peak / 2**30 for peak in steps.peak_bytes] for steps in (a, b)]
    rows = [
        ("audio in a batch, s", spread(audio_seconds, ".1f"), ""),
        ("padding in the padded batch", "", spread(wasted)),
        ("seconds a step", spread(a.seconds), spread(b.seconds)),
        ("CPU seconds a step", spread(a.cpu_seconds), spread(b.cpu_seconds)),
        ("peak memory a step adds, GiB", spread(gib[0]), spread(gib[1])),
        ("share of the matrix-product rate", spread(shares), ""),
    ]
    lines = [
        f"### {args.variant} norm: **{spread(ratios)} times faster** (CPU time {spread(cpu_ratios)})",
        "",
        f"{args.pairs} pairs, {args.utterances} utterances of {args.shortest:g} to {args.longest:g} s, {args.layers} layers, "
        f"{args.threads} threads, torch {torch.__version__}, matrix products at {spread([r / 1e9 for r in rates], '.0f')} GFLOP/CPU s. "
        "Median (least to most).",
        "",
        "| | isogloss | Hugging Face |",
        "|---|---|---|",
        *(f"| {name} | {ours} | {theirs} |" for name, ours, theirs in rows),
    ]
    return "\n" + "\n".join(lines)


if __name__ == "__main__":
    main()
