"""Predict the units of hidden frames at chosen layers: what HuBERT, ILS-SSL, WavLM and UniSpeech-SAT have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.fields import Count, Positive, Weight
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.corruption.mixing import Mixing, Noise, mix_utterances
from isogloss.corruption.spans import mask_spans
from isogloss.encoders.base import Encoder
from isogloss.losses.prediction import METRICS, unit_cross_entropy, unit_logits, unit_metrics
from isogloss.nn.product import Linear
from isogloss.objectives.base import HeadReport, Objective, ObjectiveConfig, Watch

# fairseq's dictionaries begin with <s>, <pad>, </s> and <unk>: its tables of k units have k+4 rows.
_DICTIONARY_SPECIALS = 4


class MaskedUnitsConfig(ObjectiveConfig):
    """Settings of masked prediction; the defaults are HuBERT BASE in its second iteration.

    num_units
        K, the number of units of the labels (`data.units`). First iteration: 100.
    layers
        Layers that predict; −1 is the last, 0 the input of the first block. ILS-SSL: [4, 12] of 12.
    final_width, temperature
        F, the width in which states meet the embeddings of the units (768 in LARGE, 1024 in X-LARGE), and the divisor of
        the cosine.
    masked_weight, unmasked_weight
        Weights of the hidden and of the other frames; frames of weight 0 are no targets.
    feature_penalty
        Weight of the mean square of the convolutions' outputs.
    mask_probability, mask_span, equalize_masks
        As in wav2vec 2.0: share of frames covered if spans did not overlap, frames in a span, fairseq's `require_same_masks`.
    """

    num_units: Annotated[int, Field(ge=2)] = 500
    layers: tuple[int, ...] = (-1,)
    final_width: Count = 256
    temperature: Positive = 0.1
    masked_weight: Weight = 1.0
    unmasked_weight: Weight = 0.0
    feature_penalty: Weight = 10.0
    mask_probability: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    mask_span: Count = 10
    equalize_masks: bool = False

    @classmethod
    def of_heads(cls, heads: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the number of units and the width of the heads, our own or fairseq's."""
        table = heads.get("label_embeddings")
        if table is not None and table.dim() == 2 and len(table) > _DICTIONARY_SPECIALS + 1:
            return {"num_units": len(table) - _DICTIONARY_SPECIALS, "final_width": table.shape[1]}
        own = heads.get("heads.0.embeddings_CF")
        return None if own is None else {"num_units": len(own), "final_width": own.shape[1]}

    @model_validator(mode="after")
    def _predicts(self) -> Self:
        if not self.layers:
            raise ValueError("layers must name at least one layer, but is empty; −1 is the last")
        if self.masked_weight == self.unmasked_weight == 0.0:
            raise ValueError("masked_weight and unmasked_weight must not both be 0: there would be no target")
        return self


class UnitHead(nn.Module):
    """cos(A·state, embedding)/temperature for each unit: A (D→F) and K embeddings, drawn from U(0, 1) as fairseq's."""

    def __init__(self, width: int, final_width: int, num_units: int) -> None:
        super().__init__()
        self.projection = Linear(width, final_width)
        self.embeddings_CF = nn.Parameter(torch.rand(num_units, final_width))

    def forward(self, states_MD: Tensor, temperature: float) -> Tensor:
        """Return logits, M×K."""
        return unit_logits(self.projection(states_MD), self.embeddings_CF, temperature=temperature)


class UnitHeads(nn.ModuleList):
    """One `UnitHead` for each layer that predicts; the losses of all layers add up (ILS-SSL, arXiv 2112.08778)."""

    def __init__(self, config: MaskedUnitsConfig, width: int, num_layers: int) -> None:
        layers = _resolve(config.layers, num_layers)
        super().__init__(UnitHead(width, config.final_width, config.num_units) for _ in layers)
        self.layers, self.config = layers, config

    def predict(self, states: Sequence[Packed], units_N: Tensor, is_masked_N: Tensor) -> LossTerms:
        """Return the summed loss of all layers over the target frames, and the metrics of the last of them."""
        config = self.config
        total = states[-1].values_ND.new_zeros((), dtype=torch.float32)
        num_targets = 0
        metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {}
        for kind, weight, is_target_N in (
            ("", config.masked_weight, is_masked_N),
            ("unmasked_", config.unmasked_weight, ~is_masked_N),
        ):
            if weight == 0.0:
                continue
            rows_M = is_target_N.nonzero().squeeze(1).to(units_N.device)
            units_M = units_N.index_select(0, rows_M)
            num_targets += len(rows_M)
            for layer, head in zip(self.layers, self, strict=True):
                logits_MC = head(states[layer].values_ND.index_select(0, rows_M), config.temperature)
                loss = unit_cross_entropy(logits_MC, units_M)
                total = total + weight * loss
                suffix = f"_{layer}" if layer != self.layers[-1] else ""
                metrics[f"{kind}prediction_loss{suffix}"] = (loss.detach(), len(rows_M))
            told = unit_metrics(logits_MC, units_M)  # of the last layer of the list
            metrics |= {f"{kind}{name}": told[name] for name in (METRICS if not kind else ("accuracy",))}
        return LossTerms(total, num_targets, metrics)

    def take(self, prefix: str, tensors: Mapping[str, Tensor]) -> HeadReport:
        """Copy what a checkpoint has under our names, or under those of fairseq's HuBERT and WavLM for the last layer."""
        last = f"{prefix}{len(self) - 1}"
        foreign: dict[str, Tensor] = {}
        sources: dict[str, str] = {}
        if "label_embeddings" in tensors:  # without them `project_context` is the head of another objective
            names = {"projection.weight": "project_context.weight", "projection.bias": "project_context.bias"}
            names["embeddings_CF"] = "label_embeddings"
            sources = {f"{last}.{own}": name for own, name in names.items()}
            foreign = {f"{last}.{own}": tensors[name] for own, name in names.items() if name in tensors}
        report = HeadReport()
        for name, value in self.state_dict(prefix=prefix).items():
            tensor = tensors.get(name, foreign.get(name))
            if tensor is not None and tensor.dim() == 2 and len(tensor) == len(value) + _DICTIONARY_SPECIALS:
                tensor = tensor[_DICTIONARY_SPECIALS:]
            if tensor is not None and tensor.shape == value.shape:
                value.copy_(tensor)
                report.taken.append(name)
                if name not in tensors:
                    report.sources.append(sources[name])
            else:
                report.fresh.append(name)
        return report


class MaskedUnits(Objective):
    """Parts of the objectives that predict units: heads, masks, targets, and taking heads from a checkpoint."""

    config: MaskedUnitsConfig
    requires = frozenset({"units"})

    def __init__(self, config: MaskedUnitsConfig, width: int, num_layers: int) -> None:
        super().__init__()
        self.config = config
        self.additive = not config.equalize_masks
        self.num_units = config.num_units
        self.heads = UnitHeads(config, width, num_layers)
        self.watches = masked_unit_watches(config)

    def unit_terms(
        self, encoder: Encoder, batch: SpeechBatch, audio: Packed
    ) -> tuple[LossTerms, Sequence[Packed], Tensor]:
        """Return HuBERT's loss on `audio`, the states of all layers, and which frames were hidden (N, on the CPU)."""
        frontend = encoder.frontend(audio)
        latents = frontend.latents
        units_N = self.units(batch, latents)
        is_masked_N = self.masks(latents, batch.seeds_B)

        states = encoder.context(latents, is_masked_N.to(units_N.device)).states
        terms = self.heads.predict(states, units_N, is_masked_N)

        penalty = self.penalty(frontend.features, is_masked_N)
        terms.total = terms.total + self.config.feature_penalty * penalty
        terms.metrics["feature_energy"] = (penalty.detach(), terms.num_targets)
        terms.metrics["masked_fraction"] = (int(is_masked_N.sum()), len(is_masked_N))
        return terms, states, is_masked_N

    def mixed(
        self, encoder: Encoder, batch: SpeechBatch, mixing: Mixing, noise: Noise | None = None
    ) -> tuple[Packed, Tensor]:
        """Return the batch with second voices, normalised again where the encoder wants it, and which utterances have one."""
        generators = utterance_generators(batch.seeds_B, "mixing")
        audio, is_mixed_B = mix_utterances(batch.audio, batch.seeds_B, generators, mixing, noise)
        if not encoder.normalizes_waveform:
            return audio, is_mixed_B
        parts = zip(audio.split(), is_mixed_B.tolist(), strict=True)
        return Packed.from_list([encoder.prepare(wave) if mixed else wave for wave, mixed in parts]), is_mixed_B

    def masks(self, latents: Packed, seeds_B: Tensor) -> Tensor:
        """Draw which frames are hidden, N booleans on the CPU."""
        config = self.config
        return mask_spans(
            latents.sizes,
            utterance_generators(seeds_B, "masks"),
            probability=config.mask_probability,
            span=config.mask_span,
            equalize=config.equalize_masks,
        )

    def units(self, batch: SpeechBatch, latents: Packed) -> Tensor:
        """Return the unit of every frame, N; `DataError` where the batch has none, or not one a frame."""
        if batch.units is None:
            raise DataError("this objective predicts units, but the batch has none; say where they are in `data.units`")
        if batch.units.sizes != latents.sizes:
            raise DataError(
                f"the batch has {batch.units.sizes} units for {latents.sizes} frames; they were made for another frame rate"
            )
        return batch.units.values_ND

    def penalty(self, features: Packed, is_masked_N: Tensor) -> Tensor:
        """Return Σ_i n_i · mean(features_i²) over utterances with n_i targets: per target, as fairseq weighs it, and additive."""
        config = self.config
        energy_B = features.with_values(features.values_ND.float().square().mean(1)).mean()
        parts = is_masked_N.split(features.sizes)
        num_masked_B = torch.stack([part.sum() for part in parts]).to(energy_B)
        counts_B = features.lengths_B.to(energy_B) - num_masked_B if config.unmasked_weight else 0.0
        return ((num_masked_B * bool(config.masked_weight) + counts_B) * energy_B).sum()

    def rebuild_heads(self, encoder: Encoder, names: Sequence[str]) -> str:
        """Leave them as initialised: what they predict are the units of `data.units`, whose number they have."""
        return (
            "they are initialised afresh for the units of `data.units`; for those of the checkpoint itself, cluster its own layer: "
            "`isogloss label --features model --from MODEL --layer N`"
        )

    @torch.no_grad()
    def take_heads(self, tensors: Mapping[str, Tensor]) -> HeadReport:
        """Copy the heads of an isogloss, fairseq or UniSpeech checkpoint; of tables of k+4 rows the last k are the units."""
        report = self.heads.take("heads.", tensors)
        other = super().take_heads({name: value for name, value in tensors.items() if not name.startswith("heads.")})
        report.taken += [name for name in other.taken if not name.startswith("heads.")]
        report.fresh += [name for name in other.fresh if not name.startswith("heads.")]
        return report


def masked_unit_watches(config: MaskedUnitsConfig) -> tuple[Watch, ...]:
    """Return the signs of health of masked prediction; they read the metrics of the last layer that predicts."""
    prefix = "" if config.masked_weight else "unmasked_"
    if prefix:
        return ()
    return (
        Watch(
            metric="predicted_ratio",
            low=0.05,
            patience=500,
            grace=3000,
            meaning="the predictions have collapsed to a few units",
            advice="lower the learning rate, warm up for longer, or put more seconds into an update",
        ),
        Watch(
            metric="gain_over_majority",
            low=0.0,
            patience=1000,
            grace=5000,
            meaning="hidden frames are predicted no better than by always guessing the commonest unit",
            advice="warm up for longer, change the learning rate, or check that the units were made from these recordings",
        ),
        Watch(
            metric="majority_share",
            high=0.5,
            patience=200,
            grace=0,
            meaning="one unit covers half of the frames: the units say little more than silence or speech",
            advice="label again with more units or another layer, and segment long silences away",
        ),
    )


def _resolve(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    found = []
    for layer in layers:
        if not -num_layers - 1 <= layer <= num_layers:
            raise ConfigError(
                f"`objective.layers` must lie in 0…{num_layers} (−1 is the last), but has {layer}: the encoder has {num_layers} layers"
            )
        found.append(layer % (num_layers + 1))
    if sorted(set(found)) != found:
        raise ConfigError(f"`objective.layers` must rise and name no layer twice, but is {list(layers)}")
    return tuple(found)
