"""data2vec, data2vec 2.0, DinoSR and SpidR: how they begin, slow oracles, schedules, and the signs of collapse."""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isogloss.core.errors import ConfigError, TrainingError
from isogloss.core.rng import utterance_generators
from isogloss.core.types import Packed
from isogloss.corruption.exact import mask_exactly
from isogloss.corruption.spans import mask_spans
from isogloss.encoders.base import Encoder
from isogloss.encoders.mel import MelConfig
from isogloss.encoders.presets import build_encoder, preset
from isogloss.encoders.wave import WaveConfig, WaveEncoder
from isogloss.losses.regression import regression_metrics
from isogloss.nn.conv_decoder import fill_in, seeded_noise
from isogloss.objectives.base import Objective, build_objective
from isogloss.objectives.data2vec import Data2Vec
from isogloss.objectives.data2vec2 import Data2Vec2
from isogloss.objectives.dinosr import DinoSR
from isogloss.objectives.spidr import SpidR
from isogloss.targets.layer_outputs import instance_norm
from isogloss.targets.online_codebook import OnlineCodebook
from isogloss.training.optim import OptimConfig, build_optimizer
from isogloss.training.recipe import load_recipe
from isogloss.training.watchdog import Watchdog
from objective_cases import BATCH, CPC, WAVE, data2vec, data2vec2, dinosr, speech, spidr
from test_objectives_contract import quotient

# As wide and deep as BASE where it matters: D = 768 and 8 layers.
WIDE = WaveConfig.model_validate(
    WAVE.model_dump() | {"width": 768, "num_layers": 8, "num_heads": 12, "ffn_width": 512, "position_groups": 16}
)


def build(tree: dict[str, Any], config: WaveConfig = WAVE) -> tuple[Objective, Encoder]:
    torch.manual_seed(3)
    encoder = build_encoder(config)
    return build_objective(tree, encoder).train(), encoder.train()


@pytest.fixture(scope="module")
def wide() -> Encoder:
    torch.manual_seed(3)
    return build_encoder(WIDE).train()


def test_data2vec_begins_where_eight_uncorrelated_layers_put_it(wide: Encoder) -> None:
    objective = build_objective({"name": "data2vec"}, wide).train()
    terms = objective(wide, speech([32000] * 2, encoder=wide))
    assert quotient(terms, "target_std") == pytest.approx(8**-0.5, abs=0.02)
    assert quotient(terms, "loss") == pytest.approx(12.5, abs=0.7)
    # predicting zero costs √768 · 1/8 = 3.46
    zero = quotient(terms, "loss") / quotient(terms, "fvu")
    assert zero == pytest.approx(3.44, abs=0.3)


@pytest.mark.parametrize("name", ["dinosr", "spidr"])
def test_online_codes_begin_at_the_logarithm_of_their_number(name: str, wide: Encoder) -> None:
    objective = build_objective({"name": name}, wide).train()
    terms = objective(wide, speech([32000] * 2, encoder=wide))
    assert 5.53 < quotient(terms, "cross_entropy") < 5.60


@pytest.mark.parametrize("case", [data2vec, data2vec2, dinosr, spidr])
def test_neither_gradient_nor_optimizer_reaches_the_teacher(case: Any) -> None:
    objective, encoder = build(case.CASES[""].tree, case.CASES[""].encoder)
    teacher = cast(Any, objective).teacher
    objective(encoder, speech(BATCH, encoder=encoder)).total.backward()
    tensors = {id(tensor) for tensor in teacher.state_dict(keep_vars=True).values()}
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in teacher.buffers())
    optimizer = build_optimizer(OptimConfig(), objective)
    assert not tensors & {id(p) for group in optimizer.param_groups for p in group["params"]}
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.model.state_dict().items())


def expected_targets(teacher: Encoder, latents: Packed, top: int) -> list[Tensor]:
    """Compute the normalised feed-forward outputs of the top layers by walking through the (post-norm) layers."""
    assert isinstance(teacher, WaveEncoder)
    values_ND, sizes = teacher.projection(latents.values_ND), latents.sizes
    values_ND = teacher.norm(values_ND + teacher.position(values_ND, sizes))
    shared = teacher.relative(sizes) if teacher.relative is not None else None
    outputs = []
    for layer in teacher.layers:
        middle_ND = layer.attention_norm(values_ND + layer.attention(values_ND, sizes, shared))
        output_ND = layer.ffn(middle_ND)
        values_ND = layer.ffn_norm(middle_ND + output_ND)
        outputs.append(instance_norm(latents.with_values(output_ND)))
    return outputs[-top:]


def test_data2vec_is_its_formula() -> None:
    objective, encoder = build(data2vec.SMALL | {"top_layers": 1})
    assert isinstance(objective, Data2Vec)
    with torch.no_grad():  # a teacher that is not the student
        for name, tensor in objective.teacher.model.state_dict().items():
            if name.startswith("layers."):
                tensor.add_(0.05 * torch.randn_like(tensor))
    batch = speech(BATCH, encoder=encoder)
    latents = encoder.frontend(batch.audio).latents
    generators = utterance_generators(batch.seeds_B, "masks")
    is_masked_N = mask_spans(latents.sizes, generators, probability=0.65, span=10, min_masks=1)
    (target_ND,) = expected_targets(objective.teacher.model, latents, 1)
    guess_ND = objective.project(encoder.context(latents, is_masked_N).last.values_ND)
    expected = (guess_ND - target_ND)[is_masked_N].square().sum() / math.sqrt(32)
    terms = objective(encoder, batch)
    torch.testing.assert_close(terms.total, expected)
    assert terms.num_targets == int(is_masked_N.sum())


def test_data2vec2_is_the_sum_over_masks_each_computed_alone() -> None:
    objective, encoder = build(data2vec2.SMALL, data2vec2.ALIBI)
    assert isinstance(objective, Data2Vec2)
    assert isinstance(encoder, WaveEncoder)
    batch = speech(BATCH, encoder=encoder)
    latents = encoder.frontend(batch.audio).latents
    sizes = latents.sizes
    generators = utterance_generators(batch.seeds_B, "masks")
    masks = mask_exactly(sizes, generators, num_masks=2, share=0.5, span=5, adjust=0.05)
    generators = utterance_generators(batch.seeds_B, "noise")
    noise = seeded_noise(sizes, 2, 32, 0.01, generators, torch.device("cpu")).unflatten(0, (2, -1))
    target_ND = torch.stack(expected_targets(objective.teacher.model, latents, 2)).mean(0)
    expected = torch.zeros(())
    for is_masked_N, noise_ND in zip(masks, noise, strict=True):
        state_KD = encoder.context_of_kept(latents, is_masked_N[None]).last.values_ND
        decoded_ND = objective.decoder(fill_in(state_KD, is_masked_N, noise_ND), sizes)
        expected = expected + (decoded_ND - target_ND)[is_masked_N].square().sum() / math.sqrt(32)
    terms = objective(encoder, batch)
    torch.testing.assert_close(terms.total, expected)
    assert terms.num_targets == int(masks.sum())


@pytest.mark.parametrize("case", [dinosr, spidr])
def test_online_codes_are_their_formula_with_heads_on_the_layers_of_the_paper(case: Any) -> None:
    objective, encoder = build(case.SMALL, case.CASES[""].encoder)
    assert isinstance(objective, DinoSR | SpidR)
    batch = speech(BATCH, encoder=encoder)
    latents = encoder.frontend(batch.audio).latents
    generators = utterance_generators(batch.seeds_B, "masks")
    is_masked_N = mask_spans(latents.sizes, generators, probability=0.8, span=10, min_masks=1)
    states = encoder.context(latents, is_masked_N).states
    read = [states[1], states[2]] if case is spidr else [states[2], states[2]]
    expected = torch.zeros(())
    for k, target_ND in enumerate(expected_targets(objective.teacher.model, latents, 2)):
        target_MD = target_ND[is_masked_N]
        codes_M = torch.cdist(target_MD, objective.codebook.codes_GCD[k]).argmin(1)
        logits_MC = cast(Any, objective.heads[k])(read[k].values_ND[is_masked_N])
        expected = expected + F.cross_entropy(logits_MC, codes_M, reduction="sum") / 2
    terms = objective(encoder, batch)
    torch.testing.assert_close(terms.total, expected)
    before = objective.codebook.codes_GCD.clone()
    again = objective(encoder, batch)
    assert torch.equal(objective.codebook.codes_GCD, before), "codes stand still within an update"
    torch.testing.assert_close(again.total, terms.total)
    objective.after_step(0.1)
    assert not torch.equal(objective.codebook.codes_GCD, before)


def test_codes_come_to_life_in_small_updates() -> None:
    """60 frames an update, from 40 clusters: most of 32 codes are used (18 of those that begin at N(0, 1))."""
    torch.manual_seed(0)
    means_CD = torch.randn(40, 24)
    book = OnlineCodebook(1, 32, 24, decay=0.9, start_std=0.1)
    used = []
    for _ in range(100):
        frames_MD = means_CD[torch.randint(40, (60,))] + 0.3 * torch.randn(60, 24)
        codes_GM = book.assign(frames_MD[None])
        book.collect(frames_MD[None], codes_GM)
        book.step()
        used.append(codes_GM.flatten())
    assert len(torch.cat(used[-20:]).unique()) >= 24


@pytest.mark.parametrize("name", ["data2vec", "dinosr", "spidr"])
def test_a_short_utterance_has_the_published_least_number_of_spans(name: str) -> None:
    """At p near 0 every utterance has exactly `min_masks` spans of 3: one by default, as in fairseq's data2vec."""
    for min_masks in (None, 1, 0):
        tree = {"name": name, "top_layers": 1, "mask_probability": 1e-6, "mask_span": 3}
        tree |= {} if min_masks is None else {"min_masks": min_masks}
        objective, encoder = build(tree)
        assert objective(encoder, speech(BATCH, encoder=encoder)).num_targets == len(BATCH) * 3 * (min_masks != 0)


def test_schedules_are_the_published_ones() -> None:
    from isogloss.objectives import dinosr as dinosr_file
    from isogloss.objectives import spidr as spidr_file

    six = WAVE.model_copy(update={"num_layers": 8})
    student, spider = build({"name": "dinosr"}, six)[0], build({"name": "spidr"}, six)[0]
    assert isinstance(student, DinoSR)
    assert isinstance(spider, SpidR)
    for update, expected in ((0, 0.999), (15_000, 0.99945), (30_000, 0.9999), (200_000, 0.9999)):
        assert student.decay(update / 400_000) == pytest.approx(expected, abs=1e-9)
    for update in (0, 20_000, 100_000):
        assert spider.decay(update / 400_000) == pytest.approx(1 - 0.001 * math.exp(-update / 20_000), abs=1e-12)
    assert dinosr_file.Config().continued().decay_start == 0.9999
    assert spidr_file.Config().continued().teacher_start == "copy"


def test_teachers_average_what_their_papers_say_and_begin_as_they_say() -> None:
    objective, encoder = build(data2vec.SMALL)
    assert isinstance(objective, Data2Vec)
    assert {name.split(".")[0] for name in objective.teacher.averaged} == {"layers"}
    objective, encoder = build(data2vec2.SMALL, data2vec2.ALIBI)
    assert isinstance(objective, Data2Vec2)
    shared = set(encoder.state_dict()) - objective.teacher.averaged
    assert {name.split(".")[0] for name in shared} == {"convolutions", "latent_norm"}
    for start in ("random", "copy"):
        objective, encoder = build(spidr.SMALL | {"teacher_start": start})
        assert isinstance(objective, SpidR)
        mine, own = encoder.state_dict(), objective.teacher.model.state_dict()
        is_same = {name: torch.equal(mine[name], own[name]) for name in mine}
        assert all(same for name, same in is_same.items() if not name.startswith("layers."))
        assert is_same["layers.0.attention.qkv.weight"] == (start == "copy")


def test_once_frozen_teacher_and_convolutions_stand_still_and_the_rest_goes_on() -> None:
    objective, encoder = build(dinosr.SMALL | {"freeze_after": 0.5})
    assert isinstance(objective, DinoSR)
    optimizer = build_optimizer(OptimConfig(lr=1e-2, weight_decay=0.1), torch.nn.ModuleList([objective, encoder]))
    batch, seen = speech(BATCH, encoder=encoder), []
    for progress in (0.25, 0.5, 0.75, 1.0):
        objective(encoder, batch).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(progress)
        objective.follow(encoder, progress)
        seen.append(
            {
                "convolutions": torch.cat(
                    [t.flatten() for n, t in encoder.state_dict().items() if n.startswith("conv")]
                ),
                "latent_norm": encoder.state_dict()["latent_norm.weight"].clone(),
                "layers": encoder.state_dict()["layers.0.ffn.up.weight"].clone(),
                "teacher": objective.teacher.model.state_dict()["layers.0.ffn.up.weight"].clone(),
                "codebook": objective.codebook.codes_GCD.clone(),
            }
        )
    for name in seen[0]:
        moved = [not torch.equal(a[name], b[name]) for a, b in itertools.pairwise(seen)]
        still = name in ("convolutions", "latent_norm", "teacher")
        assert moved == ([True, False, False] if still else [True, True, True]), name


def test_a_run_that_goes_on_from_a_finished_one_begins_unfrozen() -> None:
    finished, encoder = build(dinosr.SMALL | {"freeze_after": 0.5})
    finished.after_step(1.0)
    objective = build_objective(dinosr.SMALL | {"freeze_after": 0.5}, encoder).train()
    with torch.no_grad():
        report = objective.take_heads(finished.state_dict())
    assert (report.fresh, report.sources) == (["progress"], ["progress"])
    assert torch.equal(objective.state_dict()["codebook.sums_GCD"], finished.state_dict()["codebook.sums_GCD"])
    objective(encoder, speech(BATCH, encoder=encoder)).total.backward()
    gradient = encoder.get_parameter("convolutions.convs.0.weight").grad
    assert gradient is not None
    assert gradient.any()


def test_what_a_checkpoint_lacks_is_told_truly() -> None:
    for tree, words in (
        (data2vec.SMALL, "the teacher copies the encoder, the heads are initialised afresh"),
        (dinosr.SMALL, "the teacher copies the encoder, the heads are initialised afresh"),
        (spidr.SMALL | {"teacher_start": "random"}, "the teacher's layers have random weights of their own"),
    ):
        objective, encoder = build(tree)
        fresh = objective.take_heads({}).fresh
        assert words in objective.rebuild_heads(encoder, fresh)
        assert "teacher" not in objective.rebuild_heads(encoder, ["project.weight"])


def test_a_mel_transformer_has_targets_too() -> None:
    config = MelConfig(num_bins=20, width=32, num_layers=2, num_heads=2, ffn_width=64, mask_embedding=True, dropout=0.0)
    torch.manual_seed(3)
    encoder = build_encoder(config).train()
    objective = build_objective({"name": "data2vec", "top_layers": 2}, encoder).train()
    assert len(encoder.feed_forwards()) == 2
    terms = objective(encoder, speech(BATCH, encoder=encoder))
    assert quotient(terms, "target_std") > 0.1
    assert torch.isfinite(terms.total)


@pytest.mark.parametrize("num_frames", [5, 400])
def test_target_rank_is_the_participation_ratio_of_the_covariance(num_frames: int) -> None:
    torch.manual_seed(0)
    targets_MD = torch.randn(num_frames, 16) * torch.linspace(0.1, 2.0, 16) + 3.0
    values = torch.linalg.eigvalsh(torch.cov(targets_MD.double().T))
    total, count = regression_metrics(targets_MD, targets_MD)["target_rank"]
    assert float(total / count) == pytest.approx(float(values.sum() ** 2 / values.square().sum()), rel=1e-4)
    line_MD = torch.randn(num_frames, 1) * torch.randn(16)
    total, count = regression_metrics(line_MD, line_MD)["target_rank"]
    assert float(total / count) == pytest.approx(1.0, abs=1e-4)


def watched(objective: Objective, metrics: dict[str, float], updates: int = 5000) -> tuple[list[str], str]:
    """Return the watchdog's warnings and its last word about metrics that never change."""
    watchdog, warnings = Watchdog(objective.watches), []
    try:
        for step in range(updates):
            warnings += watchdog.observe(step, metrics)
    except TrainingError as error:
        return warnings, str(error)
    return warnings, ""


def test_watchdog_names_a_dead_teacher_a_dead_student_and_dead_codes() -> None:
    objective, _ = build(data2vec.SMALL)
    for metric, value, words in (
        ("target_std", 0.05, "the teacher says the same of every frame"),
        ("prediction_std", 0.005, "the student predicts the same of every frame"),
        ("target_rank", 1.2, "along one direction only"),
        ("fvu", 1.2, "does worse than predicting zero"),
    ):
        warnings, error = watched(objective, {metric: value})
        assert words in warnings[0]
        assert words in error
    objective, _ = build(dinosr.SMALL)
    assert (
        "collapsed to a few of their 32 codes" in watched(objective, {"code_perplexity": 1.2, "cross_entropy": 0.5})[1]
    )


def test_what_cannot_be_built_says_why() -> None:
    for tree, config, words in (
        (
            {"name": "data2vec"},
            WAVE,
            "`objective.top_layers` must be at most .* 8 for an encoder with 2; .*top_layers=1",
        ),
        ({"name": "spidr"}, CPC, "`encoder.kind` must be one with transformer layers.*but is cpc"),
        ({"name": "data2vec2"}, CPC, "must be a wave transformer"),
        (data2vec2.SMALL | {"decoder_groups": 3}, WAVE, "must be a multiple of `objective.decoder_groups`"),
        (data2vec2.SMALL | {"decoder_kernel": 4}, WAVE, "must be odd"),
        ({"name": "data2vec", "decay_start": 0.99995}, WAVE, "decay_end must be at least decay_start"),
        ({"name": "dinosr", "decay_end": 0.9}, WAVE, "decay_end must be at least decay_start"),
        (data2vec2.SMALL, WAVE.model_validate(WAVE.model_dump() | {"relative": {"kind": "gated"}}), "ALiBi"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_objective(tree, build_encoder(cast(Any, config)))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("data2vec2-base", 93.16), ("data2vec2-large", 313.28), ("dinosr-base", 93.16), ("spidr-base", 93.14)],
)
def test_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        encoder = build_encoder(preset(name))
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)


@pytest.mark.parametrize("recipe", ["data2vec", "data2vec2-base", "data2vec2-large", "dinosr", "spidr"])
def test_recipes_build(recipe: str) -> None:
    for name in (recipe, f"{recipe.removesuffix('-base').removesuffix('-large')}-small"):
        loaded = load_recipe(name)
        with torch.device("meta"):
            encoder = build_encoder(loaded.encoder)
            assert build_objective(loaded.objective, encoder).config.name == loaded.objective["name"]
