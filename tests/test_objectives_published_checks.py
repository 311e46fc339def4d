"""The cheap checks that publications and released models allow, at published widths: first losses, and what eight utterances teach.

Others of their kind are beside what they check: heads of HuBERT alone, codes and regression of teachers, scores of zero, collapsed
codebooks, mask lengths.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms
from isogloss.corruption.spans import mask_spans
from isogloss.encoders.presets import build_encoder, preset
from isogloss.objectives.base import build_objective
from objective_cases import data2vec, speech
from test_objectives_contract import quotient

# Two layers of the published width: what is checked depends on the heads and on the latents, not on the depth.
SHALLOW = {"num_layers": 2, "dropout": 0.0, "attention_dropout": 0.0}
SECONDS = 16_000


def begin(tree: dict[str, Any], encoder_name: str, seconds: float, *, is_noise: bool = False) -> LossTerms:
    """Return the first terms of an objective, with settings as published, on two utterances; units are drawn evenly."""
    torch.manual_seed(3)
    config = preset(encoder_name)
    encoder = build_encoder(config.model_copy(update=SHALLOW if "dropout" in type(config).model_fields else {})).train()
    objective = build_objective(tree, encoder).train()
    batch = speech([int(seconds * SECONDS)] * 2, encoder=encoder)
    if is_noise:
        batch.audio = batch.audio.with_values(0.1 * torch.randn(len(batch.audio.values_ND)))
    if objective.num_units:
        assert batch.units is not None
        batch.units = batch.units.with_values(torch.randint(objective.num_units, (len(batch.units.values_ND),)))
    with torch.no_grad():
        terms: LossTerms = objective(encoder, batch)
    return terms


@pytest.mark.parametrize("num_units", [100, 500])
def test_hubert_begins_a_little_above_chance(num_units: int) -> None:
    """Published for tables of 104 and 504 rows: 4.68 and 6.26, about 0.04 above the logarithm."""
    terms = begin({"name": "hubert", "num_units": num_units}, "hubert-base", 3)
    assert quotient(terms, "prediction_loss") == pytest.approx(math.log(num_units) + 0.04, abs=0.06)


def test_wav2vec2_begins_near_ln_101_and_far_from_even_codes() -> None:
    """Hugging Face's BASE on noise: 4.648, and a perplexity of 111 of 640, since logits begin with a deviation of √512 = 22."""
    terms = begin({"name": "wav2vec2"}, "wav2vec2-base", 10, is_noise=True)
    assert quotient(terms, "contrastive_loss") == pytest.approx(4.648, abs=0.05)
    assert quotient(terms, "probability_perplexity") == pytest.approx(111, rel=0.3)
    assert 2 <= quotient(terms, "code_perplexity") <= 640


@pytest.mark.parametrize(
    ("tree", "encoder", "tolerance"),
    [
        ({"name": "unispeech", "ctc_weight": 0.0}, "unispeech-large", 0.05),
        ({"name": "w2v_bert"}, "w2v-bert-xl", 0.1),
        ({"name": "w2v_conformer"}, "w2v-conformer-xl", 0.1),
    ],
)
def test_other_contrasts_begin_near_ln_101(tree: dict[str, Any], encoder: str, tolerance: float) -> None:
    terms = begin(tree, encoder, 4)
    assert quotient(terms, "contrastive_loss") == pytest.approx(math.log(101), abs=tolerance)
    if tree["name"] == "w2v_bert":
        assert quotient(terms, "prediction_loss") == pytest.approx(math.log(1024), abs=0.05)


@pytest.mark.parametrize("num_codebooks", [1, 16])
def test_best_rq_begins_at_ln_8192(num_codebooks: int) -> None:
    """9.01, for one codebook and for the mean over USM's sixteen; a learned scale of 0.02 would begin at 9.30."""
    terms = begin({"name": "best_rq", "num_codebooks": num_codebooks}, "best-rq-600m", 3)
    assert quotient(terms, "prediction_loss") == pytest.approx(9.01, abs=0.1)


def test_the_same_utterance_term_begins_without_knowing() -> None:
    """It follows the spread of the cosines, not a logarithm: an area under the curve of one half is what says "at chance"."""
    terms = begin({"name": "unispeech_sat"}, "unispeech-sat-base", 3)
    assert quotient(terms, "same_utterance_auc") == pytest.approx(0.5, abs=0.05)
    assert quotient(terms, "prediction_loss") == pytest.approx(math.log(500) + 0.04, abs=0.06)


@pytest.mark.parametrize(("predictor", "encoder"), [("transformer", "modified-cpc"), ("linear", "cpc")])
def test_cpc_begins_at_ln_129_in_every_step(predictor: str, encoder: str) -> None:
    """Published: 4.8598 to 4.8600 a step, 58.318 for twelve."""
    tree = {"name": "cpc", "predictor": predictor} | ({"dropout": 0.0} if predictor == "transformer" else {})
    terms = begin(tree, encoder, 1.28)
    for step in range(1, 13):
        assert quotient(terms, f"contrastive_loss_{step}") == pytest.approx(math.log(129), abs=0.002)
    assert quotient(terms, "loss") == pytest.approx(58.318, abs=0.01)
    assert quotient(terms, "accuracy") == pytest.approx(1 / 129, abs=0.01)


@pytest.mark.parametrize("quantizer", ["gumbel", "kmeans"])
def test_codes_of_vq_wav2vec_are_between_one_and_all_in_each_book(quantizer: str) -> None:
    terms = begin({"name": "vq_wav2vec"}, f"vq-wav2vec-{quantizer}", 2)
    assert 2 < quotient(terms, "code_perplexity") <= 640


@pytest.mark.parametrize(("probability", "covered"), [(0.8, 0.566), (0.65, 0.489), (0.5, 0.401)])
def test_spans_cover_what_the_formula_says(probability: float, covered: float) -> None:
    """1 − (1 − p/L)^L over a thousand draws, L = 10."""
    assert covered == pytest.approx(1 - (1 - probability / 10) ** 10, abs=5e-4)
    generators = utterance_generators(torch.arange(1000), "masks")
    hidden_N = mask_spans([780] * 1000, generators, probability=probability, span=10)
    assert float(hidden_N.float().mean()) == pytest.approx(covered, abs=0.02)


def test_data2vec_explains_half_of_the_variance_of_eight_utterances() -> None:
    case = data2vec.CASES[""]
    torch.manual_seed(3)
    encoder = build_encoder(case.encoder).train()
    objective = build_objective(case.tree, encoder).train()
    batch = speech([4000] * 8, encoder=encoder)
    optimizer = torch.optim.Adam([p for part in (objective, encoder) for p in part.parameters()], lr=case.lr)
    for step in range(120):
        terms = objective(encoder, batch)
        optimizer.zero_grad()
        (terms.total / terms.num_targets).backward()
        optimizer.step()
        objective.after_step(step / 120)
        objective.follow(encoder, step / 120)
    assert quotient(terms, "fvu") < 0.5
