"""Mockingjay, TERA and APC against slow oracles and closed forms, and the corruptions that they use."""

from __future__ import annotations

import math

import pytest
import torch

from isogloss.core.errors import ConfigError
from isogloss.core.rng import utterance_generators
from isogloss.core.types import Packed, SpeechBatch
from isogloss.corruption.frequency import draw_bands, magnitude_noise
from isogloss.corruption.replace import Replacement, replace_spans
from isogloss.encoders.apc import ApcConfig
from isogloss.encoders.mel import MelConfig
from isogloss.encoders.presets import build_encoder
from isogloss.encoders.spectral import SpectralEncoder
from isogloss.objectives._reconstruction import WATCHES, absolute_error
from isogloss.objectives.base import Objective, build_objective
from isogloss.training.watchdog import Watchdog
from objective_cases import CPC, speech

MEL = MelConfig(num_bins=10, width=16, num_layers=1, num_heads=2, ffn_width=16, dropout=0.0, attention_dropout=0.0)
SIZES = [9000, 2345, 700, 300]


def pair(config: MelConfig | ApcConfig, **tree: object) -> tuple[Objective, SpectralEncoder, SpeechBatch]:
    torch.manual_seed(2)
    encoder = build_encoder(config)
    assert isinstance(encoder, SpectralEncoder)
    objective = build_objective(tree, encoder)
    with torch.no_grad():
        for parameter in [*encoder.parameters(), *objective.parameters()]:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return objective.train(), encoder.train(), speech(SIZES)


def one_by_one(encoder: SpectralEncoder, batch: SpeechBatch) -> list[torch.Tensor]:
    return [encoder.spectrum(Packed.from_list([part])).values_ND for part in batch.audio.split()]


def draw(batch: SpeechBatch, lengths: list[int], **settings: object) -> Replacement:
    return replace_spans(lengths, utterance_generators(batch.seeds_B, "masks"), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {"probability": 0.15, "span": 7}),
        ({"stack": 3, "num_deltas": 1}, {"probability": 0.3, "span": 2, "decide": "span"}),
    ],
)
@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.0, 1.0)])
def test_mockingjay_equals_the_slow_oracle(
    changes: dict[str, int], settings: dict[str, object], shares: tuple[float, float]
) -> None:
    config = MEL.model_copy(update=changes)
    tree = {
        "mask_probability": settings["probability"],
        "mask_span": settings["span"],
        "zeroed": shares[0],
        "replaced": shares[1],
    }
    objective, encoder, batch = pair(
        config, name="mockingjay", **tree, **({"decide": "span"} if "decide" in settings else {})
    )
    terms = objective(encoder, batch)
    spectra = one_by_one(encoder, batch)
    lengths = [len(s) // config.stack for s in spectra]
    drawn = draw(batch, lengths, **settings, zeroed=shares[0], replaced=shares[1])
    total, cells, first = 0.0, 0, 0
    for spectrum, length in zip(spectra, lengths, strict=True):
        corrupted = spectrum.clone()
        for n in range(length):
            for i in range(config.stack):
                row = n * config.stack + i
                corrupted[row] = (
                    0.0
                    if drawn.is_zeroed_N[first + n]
                    else spectrum[(int(drawn.source_N[first + n]) - first) * config.stack + i]
                )
        if length:
            states = encoder.context(encoder.embed(Packed.from_list([corrupted])).latents).last.values_ND
            guesses = objective.head(states).view(length * config.stack, -1)
            for n in range(length):
                if drawn.is_chosen_N[first + n]:
                    rows = slice(n * config.stack, (n + 1) * config.stack)
                    total += float((guesses[rows] - spectrum[rows]).abs().sum().detach())
                    cells += spectrum[rows].numel()
        first += length
    assert terms.num_targets == cells > 0
    assert float(terms.total.detach()) == pytest.approx(total, rel=1e-4)


def test_tera_equals_the_slow_oracle() -> None:
    config = MEL.model_copy(update={"num_deltas": 1, "stack": 2})
    objective, encoder, batch = pair(config, name="tera", noise_probability=0.5, max_band=0.6)
    terms = objective(encoder, batch)
    spectra = one_by_one(encoder, batch)
    lengths = [len(s) // 2 for s in spectra]
    drawn = draw(batch, lengths, probability=0.15, span=7)
    bands = draw_bands(10, utterance_generators(batch.seeds_B, "bands"), max_share=0.6)
    noise = magnitude_noise(
        [len(s) for s in spectra], 20, utterance_generators(batch.seeds_B, "noise"), probability=0.5, std=0.2
    )
    assert bands.any()
    assert noise.any()
    total, cells, first = 0.0, 0, 0
    for spectrum, length, band, added in zip(
        spectra, lengths, bands, noise.split([len(s) for s in spectra]), strict=True
    ):
        corrupted = spectrum.clone()
        for n in range(length):
            for i in (0, 1):
                corrupted[2 * n + i] = (
                    0.0 if drawn.is_zeroed_N[first + n] else spectrum[2 * (int(drawn.source_N[first + n]) - first) + i]
                )
        corrupted[:, torch.cat([band, band])] = 0.0
        corrupted = corrupted + added
        if length:
            states = encoder.context(encoder.embed(Packed.from_list([corrupted])).latents).last.values_ND
            guesses = objective.head(states).view(2 * length, 20)
            for row in range(2 * length):
                for column in range(20):
                    if drawn.is_chosen_N[first + row // 2] or band[column % 10]:
                        total += abs(float(guesses[row, column].detach()) - float(spectrum[row, column]))
                        cells += 1
        first += length
    assert terms.num_targets == cells
    assert float(terms.total.detach()) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("ahead", [1, 5])
def test_apc_equals_the_slow_oracle(ahead: int) -> None:
    objective, encoder, batch = pair(ApcConfig(num_bins=10, width=8, dropout=0.0), name="apc", steps_ahead=ahead)
    terms = objective(encoder, batch)
    total, last, cells = 0.0, 0.0, 0
    for spectrum in one_by_one(encoder, batch):
        if not len(spectrum):
            continue
        guesses = objective.head(encoder.context(Packed.from_list([spectrum])).last.values_ND)
        for t in range(len(spectrum) - ahead):
            total += float((guesses[t] - spectrum[t + ahead]).abs().sum().detach())
            last += float((spectrum[t] - spectrum[t + ahead]).abs().sum())
            cells += 10
    assert terms.num_targets == cells
    assert float(terms.total.detach()) == pytest.approx(total, rel=1e-4)
    error, baseline = terms.metrics["loss_vs_last"]
    assert float(error) / float(baseline) == pytest.approx(total / last, rel=1e-4)


def test_closed_forms_of_the_loss() -> None:
    torch.manual_seed(0)
    targets, is_chosen = torch.randn(20_000, 4), torch.rand(20_000, 4) < 0.3
    perfect = absolute_error(targets, targets, is_chosen)
    assert float(perfect.total) == 0
    nothing = absolute_error(torch.zeros_like(targets), targets, is_chosen)
    # E|x| of a standard Gaussian is √(2/π) = 0.798; 24 000 cells have a standard error of 0.6/155 = 0.004.
    assert float(nothing.total) / nothing.num_targets == pytest.approx(math.sqrt(2 / math.pi), abs=0.016)
    assert float(nothing.metrics["guess_spread"][0]) == 0
    elsewhere = targets + torch.randn_like(targets) * ~is_chosen
    guesses = torch.randn_like(targets)
    assert torch.equal(
        absolute_error(guesses, targets, is_chosen).total, absolute_error(guesses, elsewhere, is_chosen).total
    )


def test_constant_guesses_are_named() -> None:
    terms = absolute_error(torch.zeros(50, 4), torch.randn(50, 4))
    metrics = {name: float(total) / float(count) for name, (total, count) in terms.metrics.items()}
    dog, warnings = Watchdog(WATCHES), []
    for step in range(2500, 3100):
        warnings += dog.observe(step, metrics)
    assert any("mean spectrum" in warning for warning in warnings)
    assert any("no better than zero" in warning for warning in warnings)


def test_encoders_that_cannot_learn_it_are_refused() -> None:
    for name in ("mockingjay", "tera", "apc"):
        with pytest.raises(ConfigError, match="reads samples"):
            build_objective({"name": name}, build_encoder(CPC))
    with pytest.raises(ConfigError, match="causal"):
        build_objective({"name": "apc"}, build_encoder(MEL))
    with pytest.raises(ConfigError, match="at most 1"):
        build_objective({"name": "tera", "zeroed": 0.95}, build_encoder(MEL))


def generators(count: int, purpose: str = "masks") -> list[torch.Generator]:
    return utterance_generators(torch.arange(count), purpose)


def test_spans_cover_what_they_should() -> None:
    drawn = replace_spans([700] * 300, generators(300), probability=0.15, span=7)
    # 15 spans of 7 in 700 rows: 1 − (1 − 7/700)¹⁵ = 14.0 %; 300 utterances have a standard error of 0.04 %.
    assert float(drawn.is_chosen_N.float().mean()) == pytest.approx(0.140, abs=0.002)
    kinds = []
    for chosen, zeroed, source, start in zip(
        drawn.is_chosen_N.split(700),
        drawn.is_zeroed_N.split(700),
        drawn.source_N.split(700),
        range(0, 210_000, 700),
        strict=True,
    ):
        is_moved = source != torch.arange(start, start + 700)
        assert ((source >= start) & (source < start + 700)).all()
        assert not (zeroed & ~chosen).any()
        assert not (is_moved & ~chosen).any()
        kinds.append("zeroed" if zeroed.any() else "replaced" if is_moved.any() else "left")
        assert not (zeroed.any() and is_moved.any())  # one die for an utterance
    # Binomial with 300 trials: three standard deviations are 0.07 and 0.05.
    assert kinds.count("zeroed") / 300 == pytest.approx(0.8, abs=0.07)
    assert kinds.count("replaced") / 300 == pytest.approx(0.1, abs=0.055)


def test_each_span_has_its_own_die_where_asked() -> None:
    drawn = replace_spans([20_000], generators(1), probability=0.15, span=1, decide="span")
    chosen = drawn.is_chosen_N
    assert int(chosen.sum()) == 3000
    is_moved = drawn.source_N != torch.arange(20_000)
    assert float(drawn.is_zeroed_N[chosen].float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float(is_moved[chosen].float().mean()) == pytest.approx(0.1, abs=0.02)


def test_replaced_spans_are_consecutive_frames_of_the_same_utterance() -> None:
    drawn = replace_spans([50, 6, 40], generators(3), probability=0.15, span=7, zeroed=0.0, replaced=1.0)
    assert not drawn.is_chosen_N[50:56].any()  # shorter than a span
    rows = drawn.is_chosen_N[:50].nonzero().squeeze(1)
    assert len(rows) == 7  # round(0.15·50/7) = 1 span
    assert (drawn.source_N[rows].diff() == 1).all()
    values = Packed(torch.arange(96.0)[:, None], torch.tensor([50, 6, 40]))
    assert torch.equal(drawn.apply(values).values_ND[:, 0].long(), drawn.source_N)


def test_an_utterance_draws_alone() -> None:
    both = replace_spans([50, 80], generators(2), probability=0.3, span=7)
    alone = replace_spans([80], generators(2)[1:], probability=0.3, span=7)
    assert torch.equal(both.is_chosen_N[50:], alone.is_chosen_N)
    assert torch.equal(both.source_N[50:] - 50, alone.source_N)


def test_bands_and_noise() -> None:
    bands = draw_bands(80, generators(2000), max_share=0.2)
    widths = bands.sum(1)
    assert int(widths.max()) == 16
    assert int(widths.min()) == 0
    assert float(widths.float().mean()) == pytest.approx(8.0, abs=0.35)  # three standard errors of 4.9/√2000
    assert ((bands[:, 1:] & ~bands[:, :-1]).sum(1) + bands[:, 0] <= 1).all()  # one piece each
    noise = magnitude_noise([20] * 500, 4, generators(500), probability=0.15, std=0.2)
    is_noisy = torch.stack([part.any() for part in noise.split(20)])
    assert float(is_noisy.float().mean()) == pytest.approx(0.15, abs=0.05)
    assert float(noise[noise != 0].std()) == pytest.approx(0.2, rel=0.05)
