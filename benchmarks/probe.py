"""How long a measurement takes: features, the linear probe's fit, CTC decoding, forced alignment. Nothing is downloaded.

    OMP_NUM_THREADS=1 python benchmarks/probe.py

Speech is noise (time does not depend on what is said), sizes are those of a small study: 10 minutes, 60 phones, width 256.
Each figure is the median of several rounds in processor time, which a busy machine disturbs least, with the spread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from isogloss.core.types import Packed
from isogloss.evaluation.linear import fit_path
from isogloss.evaluation.spectral import log_mel
from isogloss.losses.ctc import prefix_beam_search
from isogloss.losses.viterbi import ctc_chain, viterbi_align


def measure(what: str, run: Callable[[], object], rounds: int, audio_seconds: float | None = None) -> float:
    times = []
    run()
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    median = statistics.median(times)
    speed = f", {audio_seconds / median:.0f} times real time" if audio_seconds else ""
    print(f"{what}: {median:.2f} s [{min(times):.2f}, {max(times):.2f}]{speed}", flush=True)
    return median


def loop_beam(scores_SC: np.ndarray, beam: int) -> tuple[int, ...]:
    """Prefix beam search as it is usually written: a dictionary of prefixes, one symbol at a time."""
    blank = scores_SC.shape[1] - 1
    beams = {(): (0.0, -np.inf)}
    for row in scores_SC:
        grown: dict[tuple[int, ...], list[float]] = {}
        for prefix, (in_blank, in_symbol) in beams.items():
            total = np.logaddexp(in_blank, in_symbol)
            for symbol, score in enumerate(row.tolist()):
                same = prefix and prefix[-1] == symbol
                if symbol == blank:
                    entry = grown.setdefault(prefix, [-np.inf, -np.inf])
                    entry[0] = np.logaddexp(entry[0], total + score)
                    continue
                entry = grown.setdefault((*prefix, symbol), [-np.inf, -np.inf])
                entry[1] = np.logaddexp(entry[1], (in_blank if same else total) + score)
                if same:
                    entry = grown.setdefault(prefix, [-np.inf, -np.inf])
                    entry[1] = np.logaddexp(entry[1], in_symbol + score)
        kept = sorted(grown.items(), key=lambda item: -np.logaddexp(*item[1]))[:beam]
        beams = {prefix: (value[0], value[1]) for prefix, value in kept}
    return max(beams.items(), key=lambda item: np.logaddexp(*item[1]))[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread")

    waveforms = [torch.randn(int(n), generator=generator) * 0.1 for n in rng.integers(16_000, 112_000, size=150)]
    seconds = sum(map(len, waveforms)) / 16_000
    measure("log-mel, 10 minutes", lambda: [log_mel(w) for w in waveforms], rounds, seconds)

    labels = torch.randint(60, (60_000,), generator=generator)
    centers = torch.randn(60, 256, generator=generator)
    values = centers[labels] + 4 * torch.randn(60_000, 256, generator=generator)
    measure(
        "linear probe, 60 000 × 256, 60 phones, three decays",
        lambda: fit_path(values, labels, 60, (1e-4, 1e-3, 1e-2), max_iterations=60),
        rounds,
    )
    measure(
        "the same, each decay from zero",
        lambda: [fit_path(values, labels, 60, (d,), max_iterations=60) for d in (1e-4, 1e-3, 1e-2)],
        1,
    )

    lengths = [int(len(w) / 16_000 * 25) for w in waveforms]
    logits = Packed(torch.randn(sum(lengths), 61, generator=generator) * 3, torch.tensor(lengths))
    ours = measure(
        "prefix beam search, beam 20, 61 classes, 25 Hz, 10 minutes",
        lambda: prefix_beam_search(logits),
        rounds,
        seconds,
    )
    few = [p.log_softmax(-1).double().numpy() for p in logits.split()[:3]]
    share = sum(map(len, few)) / sum(lengths)
    slow = measure("a loop over prefixes, 3 of 150 utterances", lambda: [loop_beam(p, 20) for p in few], 1) / share
    print(f"  ratio per second of audio: {slow / ours:.0f}")
    found = prefix_beam_search(Packed.from_list([torch.from_numpy(p) for p in few]))
    print(f"  same sequences: {[tuple(f) for f in found] == [loop_beam(p, 20) for p in few]}")

    frames = [int(len(w) / 16_000 * 50) for w in waveforms]
    scores = [rng.normal(size=(n, 61)).astype(np.float32) for n in frames]
    chains = [ctc_chain(rng.integers(60, size=n // 4).tolist(), 60) for n in frames]
    measure(
        "forced alignment, 12.5 phones a second, 50 Hz, 10 minutes",
        lambda: viterbi_align(scores, chains),
        rounds,
        seconds,
    )


if __name__ == "__main__":
    main()
