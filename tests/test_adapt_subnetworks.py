"""Sub-networks: exact shares, scores batch by batch, masks that do not depend on the processes, additions that touch nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import training_fakes as fakes
from isogloss.adapt._importance import added, language_batches, random_scores, taylor_scores
from isogloss.adapt._pruning import keep_most_important
from isogloss.adapt.loss_measure import loss_measure
from isogloss.adapt.subnetwork import Config as SubnetworkConfig
from isogloss.adapt.subnetwork import add_subnetwork, find_subnetworks
from isogloss.core import dist
from isogloss.core.errors import ConfigError, DataError
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import matrices, split_rows
from isogloss.encoders.presets import build_encoder, preset
from isogloss.evaluation.subnetworks import kinship, lesioned, mask_overlap, masks_of, relatedness, spearman
from isogloss.hub.save import save_model
from isogloss.objectives.base import build_objective
from isogloss.training.parallel import Learner
from isogloss.training.recipe import Recipe, parse_recipe
from small_corpus import speech_corpus

LANGUAGES = ("a", "b", "c")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech_corpus(tmp_path_factory.mktemp("corpus"), [9000 + 500 * i for i in range(12)], languages="abc")


def recipe_of(corpus: Path) -> Recipe:
    tree = {
        "encoder": {"preset": "wave-tiny"},
        "objective": {"name": "wav2vec2"},
        "data": {
            "path": str(corpus),
            "seconds_per_update": 3.0,
            "micro_batch_seconds": 1.5,
            "max_seconds": 1.0,
            "min_seconds": 0.1,
            "num_workers": 0,
        },
        "training": {"updates": 1},
    }
    return parse_recipe(tree, "test")


def learner() -> Learner:
    torch.manual_seed(0)
    encoder = build_encoder(preset("wave-tiny"))
    return Learner(encoder, fakes.NextFrame(encoder))


def find(corpus: Path, **settings: Any) -> Learner:
    dense = learner()
    config = SubnetworkConfig.model_validate({"batches": 3, **settings})
    find_subnetworks(dense, recipe_of(corpus), LANGUAGES, config)
    return dense


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5])
def test_exactly_the_share_is_left_out_and_it_is_the_least_important(scope: Any, sparsity: float) -> None:
    random = torch.Generator().manual_seed(0)
    scores = {
        name: torch.rand(size, 20, generator=random) * scale for name, size, scale in (("x", 10, 1), ("y", 30, 5))
    }
    masks = keep_most_important(scores, sparsity, scope)
    parts = [(scores, masks)] if scope == "global" else [({n: scores[n]}, {n: masks[n]}) for n in scores]
    for own_scores, own_masks in parts:
        values = torch.cat([own_scores[n].flatten() for n in own_scores])
        kept = torch.cat([own_masks[n].flatten() for n in own_scores])
        assert int((~kept).sum()) == round(sparsity * len(kept))
        if sparsity:
            assert values[~kept].max() <= values[kept].min()


def test_equal_scores_are_told_apart_by_their_place() -> None:
    masks = keep_most_important({"x": torch.tensor([[1.0, 0.0, 1.0, 1.0, 1.0]])}, 0.4, "tensor")
    assert masks["x"].tolist() == [[True, False, True, True, False]]
    with pytest.raises(ConfigError, match="below 1"):
        keep_most_important({"x": torch.ones(2)}, 1.0, "tensor")


def test_scores_are_sums_over_batches_of_what_a_slow_oracle_finds(corpus: Path) -> None:
    model = learner()
    batches = list(language_batches(recipe_of(corpus), model, "b", count=3))
    assert len(batches) == 3
    assert {language for batch in batches for language in batch.languages} == {"b"}
    for power in (1, 2):
        scores = taylor_scores(model, batches, power)  # type: ignore[arg-type]
        assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        model.eval()
        expected = {name: torch.zeros_like(m.weight) for name, m in matrices(model.encoder).items()}
        mean = {name: torch.zeros_like(m.weight) for name, m in matrices(model.encoder).items()}
        for batch in batches:
            model.zero_grad()
            terms = model.objective(model.encoder, batch)
            (terms.total / terms.num_targets).backward()
            for name, matrix in matrices(model.encoder).items():
                assert matrix.weight.grad is not None
                expected[name] += (matrix.weight.grad * matrix.weight.detach()).abs() ** power
                mean[name] += matrix.weight.grad / 3
        model.zero_grad()
        model.train()
        for name, score in scores.items():
            torch.testing.assert_close(score.float(), expected[name], rtol=1e-4, atol=1e-12)
            # |mean g · θ| would be another thing
            other = 3 * (mean[name] * matrices(model.encoder)[name].weight.detach()).abs() ** power
            assert (other - expected[name]).norm() > 0.01 * expected[name].norm()


def test_scores_do_not_depend_on_the_number_of_ranks(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = learner()
    batches = list(language_batches(recipe_of(corpus), model, "a", count=4))
    whole = taylor_scores(model, batches, 1)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(dist, "world_size", lambda: 2)
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        parts.append(taylor_scores(model, batches, 1))
    for name, score in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], score, rtol=1e-12, atol=0)
        assert not torch.allclose(parts[0][name], score)


def test_masks_differ_by_language_and_leave_the_weights_alone(corpus: Path) -> None:
    found = find(corpus, sparsity=0.3)
    dense = learner()
    for name, matrix in matrices(found.encoder).items():
        assert torch.equal(matrix.weight, matrices(dense.encoder)[name].weight)
        edit = masks_of(found.encoder)[name]
        shares = [float((~edit.mask(row)).float().mean()) for row in range(3)]
        assert shares == pytest.approx([0.3] * 3, abs=1e-3)
        assert not torch.equal(edit.mask(0), edit.mask(1))
    again = find(corpus, sparsity=0.3)
    assert all(torch.equal(split_rows(again.encoder)[name], row) for name, row in split_rows(found.encoder).items())


@pytest.mark.parametrize("importance", ["shared", "magnitude"])
def test_controls_with_one_mask_for_all(corpus: Path, importance: str) -> None:
    for edit in masks_of(find(corpus, importance=importance).encoder).values():
        assert torch.equal(edit.mask(0), edit.mask(1))
        assert torch.equal(edit.mask(0), edit.mask(2))


def test_lottery_masks_are_those_of_the_weights_after_training_alone_and_the_weights_are_rewound(corpus: Path) -> None:
    trained: dict[str, Encoder] = {}

    def alone(language: str) -> Encoder:
        torch.manual_seed(ord(language))
        trained[language] = build_encoder(preset("wave-tiny"))
        return trained[language]

    model, config = learner(), SubnetworkConfig(importance="lottery", sparsity=0.5)
    find_subnetworks(model, recipe_of(corpus), LANGUAGES, config, train_alone=alone)
    for name, matrix in matrices(model.encoder).items():
        assert torch.equal(matrix.weight, matrices(learner().encoder)[name].weight)
        mask, size = masks_of(model.encoder)[name].mask(1), matrices(trained["b"])[name].weight.abs()
        assert size[~mask].max() <= size[mask].min()
    with pytest.raises(ConfigError, match="each language alone"):
        find_subnetworks(learner(), recipe_of(corpus), LANGUAGES, config)


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5])
def test_random_masks_overlap_as_expected(corpus: Path, sparsity: float) -> None:
    overlap = mask_overlap(find(corpus, importance="random", sparsity=sparsity).encoder)
    for _, _, found, expected in overlap.pairs():
        assert expected == pytest.approx(sparsity / (2 - sparsity), abs=2e-3)
        assert found == pytest.approx(expected, abs=0.02)
    assert overlap.sparsity_L == pytest.approx([sparsity] * 3, abs=1e-3)
    assert np.diag(overlap.iou_LL) == pytest.approx([1.0] * 3)


def test_overlap_is_what_sets_say(corpus: Path) -> None:
    encoder = find(corpus, sparsity=0.2).encoder
    overlap = mask_overlap(encoder)
    left_out = [
        {
            (name, i)
            for name, edit in masks_of(encoder).items()
            for i in (~edit.mask(row)).flatten().nonzero().flatten().tolist()
        }
        for row in range(3)
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert overlap.iou_LL[i, j] == pytest.approx(len(left_out[i] & left_out[j]) / len(left_out[i] | left_out[j]))


def test_a_language_added_later_leaves_weights_and_masks_of_the_others_bit_equal(corpus: Path) -> None:
    model, config = learner(), SubnetworkConfig(batches=2)
    recipe = recipe_of(corpus)
    find_subnetworks(model, recipe, ("a", "b"), config)
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items() if ".edit." not in name}
    rows = {name: row.clone() for name, row in split_rows(model.encoder).items()}
    add_subnetwork(model, recipe, "c", config)
    assert model.encoder.edits is not None
    assert model.encoder.edits.languages == ("a", "b", "c")
    after = model.encoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(split_rows(model.encoder)[name], row) for name, row in rows.items())
    assert mask_overlap(model.encoder).sparsity_L == pytest.approx([0.3] * 3, abs=1e-3)
    with pytest.raises(ConfigError, match="cannot be `shared`"):
        add_subnetwork(model, recipe, "c", SubnetworkConfig(importance="shared"))


def test_lesions_take_what_only_one_language_uses(corpus: Path) -> None:
    encoder = find(corpus, importance="random", sparsity=0.5).encoder
    whole, lesion, control = (
        matrices(e) for e in (encoder, lesioned(encoder, "b"), lesioned(encoder, "b", at_random=3))
    )
    for name, edit in masks_of(encoder).items():
        unique = edit.mask(1) & ~edit.mask(0) & ~edit.mask(2)
        assert unique.any()
        assert torch.equal(lesion[name].weight != whole[name].weight, unique)
        taken = control[name].weight != whole[name].weight
        assert taken.sum() == unique.sum()
        assert not (taken & unique).any()
    alone = learner()
    find_subnetworks(alone, recipe_of(corpus), ["a"], SubnetworkConfig(importance="random"))
    with pytest.raises(DataError, match="is the only one"):
        lesioned(alone.encoder, "a")


def test_a_loss_is_measured_with_the_heads_that_were_trained(corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(preset("wave-tiny"))
    objective = build_objective({"name": "wav2vec2", "num_negatives": 5}, encoder)
    save_model(tmp_path / "whole", encoder, objective, {})
    measured, measure = loss_measure(tmp_path / "whole", corpus)
    counts_U2 = measure(measured, "a").counts_U2
    assert 0.5 * np.log(6) < counts_U2[:, 0].sum() / counts_U2[:, 1].sum() < 2 * np.log(6)
    save_model(tmp_path / "bare", encoder, None, {})
    with pytest.raises(ConfigError, match=r"must hold the heads of the objective `wav2vec2` .* lacks objective\."):
        loss_measure(tmp_path / "bare", corpus, ["objective.name=wav2vec2"])


def test_no_language_outweighs_the_others_in_a_shared_mask() -> None:
    encoder = build_encoder(preset("wave-tiny"))
    small, large = random_scores(encoder, "a", 1), random_scores(encoder, "b", 1)
    plain = added([small, large])
    scaled = added([small, {name: 1000 * score for name, score in large.items()}])
    for name in plain:
        torch.testing.assert_close(plain[name], scaled[name])


def test_relatedness_finds_families_and_nothing_in_noise() -> None:
    classes = {name: (name[0], name) for name in ("a1", "a2", "a3", "b1", "b2", "b3", "c1", "c2")}
    kin = kinship(classes, list(classes))
    assert kin[0].tolist() == [2, 1, 1, 0, 0, 0, 0, 0]
    rng = np.random.default_rng(0)
    noise = rng.normal(size=kin.shape)
    noise = noise + noise.T
    related = relatedness(kin + 0.1 * noise, kin, resamples=500)
    assert related.correlation.value > 0.6
    assert related.correlation.low > 0.3
    assert related.p_value < 0.01
    unrelated = relatedness(noise, kin, resamples=500)
    assert unrelated.correlation.low < 0 < unrelated.correlation.high
    assert unrelated.p_value > 0.05
    with pytest.raises(DataError, match="equally related"):
        relatedness(noise, np.zeros_like(noise))


def test_spearman_is_scipys() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    left, right = rng.integers(0, 5, 30), rng.integers(0, 5, 30)
    assert spearman(left, right) == pytest.approx(float(spearmanr(left, right).statistic))
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))
