"""The CTC phone probe of modified CPC (arXiv 2002.02848; `CPC_audio`): one convolution over frozen features, no language model.

At 100 Hz the convolution has kernel 8 and stride 4: one linear map of 80 ms, one output every 40 ms. At another frame rate
both are scaled so that the 80 ms and the 40 ms stay (kernel 4 and stride 2 at 50 Hz). The blank is the last class. Adam at
2e-4, 8 utterances per update, 30 epochs, the checkpoint of the lowest validation loss, prefix beam search of width 20.
The validation split is a development split, where the reference's own recipe passed the training list.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed, generator
from isogloss.core.types import Packed
from isogloss.evaluation.features import FeatureSource, Progress
from isogloss.evaluation.labels import Inventory, alignment_items, alignment_kind, phone_sequence
from isogloss.evaluation.metrics import edit_counts
from isogloss.evaluation.probes import ProbeSplits, known_speaker
from isogloss.losses.ctc import ctc_loss, min_frames, prefix_beam_search


@dataclass(frozen=True)
class CtcProbeSettings:
    """The published settings; every one is written into the result."""

    learning_rate: float = 2e-4
    utterances_per_update: int = 8
    epochs: int = 30
    beam: int = 20
    window_seconds: float = 0.08
    hop_seconds: float = 0.04
    seed: int = 0


@dataclass
class CtcProbe:
    """Phone errors per test utterance, and how the probe came about.

    `per` is the corpus rate Σ errors / Σ reference phones; `per_utterance` is the reference's mean of rates, kept for
    comparison. `left_out` counts training utterances with more phones than outputs, which no CTC path can carry.
    """

    source: str
    layer: int
    per: float
    per_utterance: float
    errors_B: npt.NDArray[Any]
    num_phones_B: npt.NDArray[Any]
    hypotheses: list[list[str]]
    ids: list[str]
    speakers: list[str | None]
    kernel: int
    stride: int
    best_epoch: int
    validation_losses: list[float]
    left_out: int
    labels: Literal["gold", "silver", "synthetic"]
    settings: CtcProbeSettings


class CtcHead(nn.Module):
    """Conv1d D → phones + blank over frozen features; an utterance shorter than the kernel has no output."""

    def __init__(self, width: int, num_phones: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, num_phones + 1, kernel, stride)

    def forward(self, features: Packed) -> Packed:
        """Map N×D features to packed logits; no output sees two utterances."""
        kernel, stride = int(self.conv.kernel_size[0]), int(self.conv.stride[0])
        lengths_B = ((features.lengths_B - kernel) // stride + 1).clamp(min=0)
        padded_BSD = features.padded()
        if padded_BSD.shape[1] < kernel:
            padded_BSD = nn.functional.pad(padded_BSD, (0, 0, 0, kernel - padded_BSD.shape[1]))
        logits_BSC = self.conv(padded_BSD.transpose(1, 2)).transpose(1, 2)
        return Packed.from_padded(logits_BSC, lengths_B)


def kernel_and_stride(frame_rate_hz: float, settings: CtcProbeSettings) -> tuple[int, int]:
    """Return the kernel and stride that span the settings' window and hop at a frame rate (at least 1 frame each)."""
    return (
        max(1, round(settings.window_seconds * frame_rate_hz)),
        max(1, round(settings.hop_seconds * frame_rate_hz)),
    )


def probe_ctc(
    source: FeatureSource,
    splits: ProbeSplits,
    *,
    layer: int = -1,
    settings: CtcProbeSettings | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> CtcProbe:
    """Train the probe on one layer of a source and return its phone error rate on the test split."""
    settings = settings or CtcProbeSettings()
    layer = source.layers[layer] if layer < 0 else layer
    kernel, stride = kernel_and_stride(source.frame_rate_hz, settings)
    inventory = Inventory.of(phone_sequence(cut) for cut in splits.train)
    train, left_out = _examples(source, splits.train, layer, inventory, kernel, stride)
    dev, _ = _examples(source, splits.dev, layer, inventory, kernel, stride)
    if not train or not dev:
        raise DataError(
            f"no {'training' if not train else 'development'} utterance has a phone sequence that fits into its "
            f"{1 / settings.hop_seconds:.0f} outputs per second; usually because the texts belong to other recordings"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "ctc probe"))
        head = CtcHead(train[0][0].shape[1], len(inventory), kernel, stride).to(device)
    optimizer = torch.optim.Adam(head.parameters(), lr=settings.learning_rate)
    losses: list[float] = []
    best: dict[str, Tensor] = {}
    for epoch in range(settings.epochs):
        order = torch.randperm(len(train), generator=generator(settings.seed, "ctc probe", epoch)).tolist()
        for start in range(0, len(order), settings.utterances_per_update):
            features, targets = _batch(
                [train[i] for i in order[start : start + settings.utterances_per_update]], device
            )
            # torch's reduction "mean": each loss over its number of phones, then the mean over utterances.
            loss = (ctc_loss(head(features), targets) / targets.lengths_B.clamp(min=1).to(device)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(_validation_loss(head, dev, settings.utterances_per_update, device))
        if losses[-1] == min(losses):
            best = copy.deepcopy(head.state_dict())
        if progress is not None:
            progress(epoch + 1, settings.epochs)
    head.load_state_dict(best)
    return _test(head, source, splits, layer, inventory, settings, losses, left_out)


def _examples(
    source: FeatureSource, cuts: Sequence[Any], layer: int, inventory: Inventory, kernel: int, stride: int
) -> tuple[list[tuple[Tensor, Tensor]], int]:
    examples: list[tuple[Tensor, Tensor]] = []
    left_out = 0
    for cut in cuts:
        values_SD = torch.from_numpy(np.array(source.features(cut)[layer]))
        targets_U = torch.from_numpy(inventory.encode(phone_sequence(cut)))
        num_outputs = max(0, (len(values_SD) - kernel) // stride + 1)
        needed = int(min_frames(Packed(targets_U, torch.tensor([len(targets_U)])))[0])
        if needed == 0 or num_outputs < needed or bool((targets_U < 0).any()):
            left_out += 1
            continue
        examples.append((values_SD, targets_U))
    return examples, left_out


def _batch(examples: Sequence[tuple[Tensor, Tensor]], device: torch.device | str) -> tuple[Packed, Packed]:
    features = Packed.from_list([values_SD.to(device).float() for values_SD, _ in examples])
    return features, Packed.from_list([targets_U for _, targets_U in examples]).to(device)


@torch.no_grad()
def _validation_loss(
    head: CtcHead, dev: Sequence[tuple[Tensor, Tensor]], batch_size: int, device: torch.device | str
) -> float:
    total = 0.0
    for start in range(0, len(dev), batch_size):
        features, targets = _batch(dev[start : start + batch_size], device)
        total += float((ctc_loss(head(features), targets) / targets.lengths_B.to(device)).sum())
    return total / len(dev)


@torch.no_grad()
def _test(
    head: CtcHead,
    source: FeatureSource,
    splits: ProbeSplits,
    layer: int,
    inventory: Inventory,
    settings: CtcProbeSettings,
    losses: list[float],
    left_out: int,
) -> CtcProbe:
    device = head.conv.weight.device
    logits = []
    for cut in splits.test:
        values_SD = torch.from_numpy(np.array(source.features(cut)[layer])).to(device).float()
        logits.append(head(Packed.from_list([values_SD])).values_ND)
    decoded = prefix_beam_search(Packed.from_list(logits), beam=settings.beam)
    hypotheses = [[inventory.phones[i] for i in symbols] for symbols in decoded]
    references = [phone_sequence(cut) for cut in splits.test]
    errors_B = np.array([edit_counts(r, h) for r, h in zip(references, hypotheses, strict=True)])
    num_phones_B = np.array([len(reference) for reference in references])
    scored = num_phones_B > 0
    return CtcProbe(
        source=source.name,
        layer=layer,
        per=float(errors_B.sum() / num_phones_B.sum()),
        per_utterance=float((errors_B[scored] / num_phones_B[scored]).mean()),
        errors_B=errors_B,
        num_phones_B=num_phones_B,
        hypotheses=hypotheses,
        ids=[cut.id for cut in splits.test],
        speakers=[known_speaker(cut) for cut in splits.test],
        kernel=int(head.conv.kernel_size[0]),
        stride=int(head.conv.stride[0]),
        best_epoch=int(np.argmin(losses)) + 1,
        validation_losses=losses,
        left_out=left_out,
        # Without an alignment the phones are the transcriber's own IPA.
        labels=alignment_kind(splits.test) if any(map(alignment_items, splits.test)) else "gold",
        settings=settings,
    )
