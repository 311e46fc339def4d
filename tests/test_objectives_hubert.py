"""HuBERT and WavLM beyond the contract: slow oracle, released heads, layers, and what mixing leaves alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.rng import utterance_generators
from isogloss.corruption.spans import mask_spans
from isogloss.encoders.presets import build_encoder
from isogloss.objectives.base import build_objective
from objective_cases import BATCH, NUM_UNITS, WAVE, speech
from objective_cases.hubert import SMALL


def build(**changes: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    encoder = build_encoder(WAVE)
    return build_objective(SMALL | changes, encoder), encoder


def test_the_loss_is_what_the_formula_says_frame_by_frame() -> None:
    objective, encoder = build()
    batch = speech(BATCH, encoder=encoder)
    terms = objective(encoder, batch)
    assert batch.units is not None
    expected, num_masked = 0.0, 0
    head = objective.heads[0]
    with torch.no_grad():
        for index in range(len(batch)):
            one = batch.select([index])
            assert one.units is not None
            latents = encoder.frontend(one.audio)
            is_masked_S = mask_spans(
                latents.latents.sizes, utterance_generators(one.seeds_B, "masks"), probability=0.8, span=10
            )
            states_SD = encoder.context(latents.latents, is_masked_S).last.values_ND
            for frame in is_masked_S.nonzero().flatten().tolist():
                guess_F = F.linear(states_SD[frame], head.projection.weight, head.projection.bias)
                logits_C = F.cosine_similarity(guess_F[None], head.embeddings_CF) / 0.1
                expected -= float(F.log_softmax(logits_C, 0)[one.units.values_ND[frame]])
            num = int(is_masked_S.sum())
            expected += 10 * num * float(latents.features.values_ND.square().mean())
            num_masked += num
    assert terms.num_targets == num_masked
    assert float(terms.total.detach()) == pytest.approx(expected, rel=1e-5)


def test_intermediate_layers_add_their_losses_and_have_heads_of_their_own() -> None:
    objective, encoder = build(layers=[1, 2], feature_penalty=0.0)
    batch = speech(BATCH, encoder=encoder)
    terms = objective(encoder, batch)
    parts = float(terms.metrics["prediction_loss_1"][0]) + float(terms.metrics["prediction_loss"][0])
    assert float(terms.total.detach()) == pytest.approx(parts, rel=1e-6)
    assert not torch.equal(objective.heads[0].embeddings_CF, objective.heads[1].embeddings_CF)
    for layers in ([3], [2, 1], [2, -1]):
        with pytest.raises(ConfigError, match=r"objective\.layers"):
            build(layers=layers)


def test_released_heads_are_taken_without_the_dictionary_specials() -> None:
    objective, _ = build()
    table = torch.randn(NUM_UNITS + 4, 32)
    released = {
        "label_embeddings": table,
        "project_context.weight": torch.randn(32, 32),
        "project_context.bias": torch.randn(32),
    }
    assert type(objective.config).of_heads(released) == {"num_units": NUM_UNITS, "final_width": 32}
    report = objective.take_heads(released)
    assert report.fresh == []
    assert torch.equal(objective.heads[0].embeddings_CF, table[4:])
    assert torch.equal(objective.heads[0].projection.weight, released["project_context.weight"])
    other, _ = build()
    del released["label_embeddings"]
    assert other.take_heads(released).taken == [], "a projection alone belongs to another objective"


def test_units_that_are_missing_or_of_another_rate_are_refused() -> None:
    objective, encoder = build()
    with pytest.raises(DataError, match=r"data\.units"):
        objective(encoder, speech(BATCH))
    batch = speech(BATCH, encoder=encoder)
    batch.units = speech([n // 2 for n in BATCH], encoder=encoder).units
    with pytest.raises(DataError, match="another frame rate"):
        objective(encoder, batch)


def test_it_overfits_eight_utterances_to_nine_tenths() -> None:
    objective, encoder = build(feature_penalty=0.0)
    batch = speech([4000] * 8, encoder=encoder)
    optimizer = torch.optim.Adam([*objective.parameters(), *encoder.parameters()], lr=3e-3)
    for _ in range(200):
        terms = objective(encoder, batch)
        optimizer.zero_grad()
        (terms.total / terms.num_targets).backward()
        optimizer.step()
    right, count = terms.metrics["accuracy"]
    assert float(right) / float(count) > 0.9


def test_the_metrics_tell_a_collapse_from_learning() -> None:
    objective, encoder = build()
    watches = {watch.metric: watch for watch in objective.watches}
    batch = speech([16000] * 4, encoder=encoder)
    with torch.no_grad():  # one unit for everything
        objective.heads[0].projection.weight.zero_()
    terms = objective(encoder, batch)
    values = {name: float(total) / float(count) for name, (total, count) in terms.metrics.items()}
    assert values["predicted_units"] == 1
    assert values["gain_over_majority"] <= 0
    assert watches["gain_over_majority"].low == 0.0
    assert values["target_units"] == pytest.approx(NUM_UNITS, abs=1)
    assert math.isclose(values["predicted_ratio"], 1 / values["target_units"], rel_tol=1e-6)


def test_wavlm_without_mixing_is_hubert_and_mixing_changes_the_input_not_the_units() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(WAVE)
    hubert = build_objective(SMALL, encoder)
    tree = SMALL | {"name": "wavlm"}
    clean = build_objective(tree | {"mixing_probability": 0.0}, encoder)
    mixing = build_objective(tree | {"mixing_probability": 1.0}, encoder)
    for other in (clean, mixing):
        other.load_state_dict(hubert.state_dict())
    batch = speech(BATCH, encoder=encoder)
    assert batch.units is not None
    before = batch.units.values_ND.clone()
    expected = hubert(encoder, batch)
    assert torch.equal(clean(encoder, batch).total, expected.total)
    mixed = mixing(encoder, batch)
    assert not torch.equal(mixed.total, expected.total)
    assert mixed.num_targets == expected.num_targets
    assert torch.equal(batch.units.values_ND, before)
    assert float(mixed.metrics["mixed_fraction"][0]) == len(BATCH)


def test_mixtures_are_normalised_again_where_the_encoder_wants_it() -> None:
    encoder = build_encoder(WAVE.model_copy(update={"normalize_waveform": True}))
    objective: Any = build_objective(SMALL | {"name": "wavlm", "mixing_probability": 1.0}, encoder)
    audio, is_mixed_B = objective.corrupt(encoder, speech(BATCH, encoder=encoder))
    assert is_mixed_B.all()
    for wave in audio.split():
        assert float(wave.mean()) == pytest.approx(0.0, abs=1e-5)
        assert float(wave.var(unbiased=False)) == pytest.approx(1.0, abs=1e-3)


def test_noises_come_from_a_folder(tmp_path: Any) -> None:
    import soundfile

    with pytest.raises(ConfigError, match="noise_dir must name a folder"):
        build(name="wavlm", noise_probability=0.5)
    with pytest.raises(ConfigError, match="noise_snr has no effect"):
        build(name="wavlm", noise_snr=[0.0, 5.0])
    with pytest.raises(ConfigError, match="noise_probability must be above 0"):
        build(name="wavlm", noise_dir=str(tmp_path))
    tree = {"name": "wavlm", "mixing_probability": 1.0, "noise_probability": 1.0, "noise_dir": str(tmp_path)}
    objective, encoder = build(**tree)
    with pytest.raises(DataError, match="no audio file in it"):
        objective(encoder, speech(BATCH, encoder=encoder))
    soundfile.write(tmp_path / "hum.wav", 0.5 * torch.sin(torch.arange(8000) / 3).numpy(), 16_000)
    audio, is_mixed_B = objective.corrupt(encoder, speech([6000], encoder=encoder))
    assert is_mixed_B.all(), "one utterance alone can have a noise"
    assert not torch.equal(audio.values_ND, speech([6000]).audio.values_ND)
    batch = speech(BATCH, encoder=encoder)
    parts = [objective(encoder, batch.select(rows)).total for rows in ([0, 1], [2, 3])]
    assert objective.additive, "noises are nobody else's speech"
    torch.testing.assert_close(sum(parts), objective(encoder, batch).total, rtol=1e-5, atol=0)
