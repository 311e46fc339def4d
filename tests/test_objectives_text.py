"""CTC and BERT against oracles: all alignments of a short text, Hugging Face's BERT, and the shares of what is hidden."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.types import Packed
from isogloss.core.vocabulary import FIRST, Labels, Vocabulary
from isogloss.corruption.tokens import corrupt_tokens
from isogloss.encoders.presets import build_encoder
from isogloss.encoders.text import TextConfig
from isogloss.losses.transcripts import encode_labels, transcript_loss
from isogloss.objectives.base import build_objective
from objective_cases import BATCH, WAVE, speech
from objective_cases.bert import TEXT


def reads_as(path: tuple[int, ...]) -> list[int]:
    return [symbol for symbol, _ in itertools.groupby(path) if symbol]


def test_the_loss_is_minus_the_log_of_the_sum_over_all_alignments() -> None:
    torch.manual_seed(0)
    logits = Packed(torch.randn(5 + 4, 4), torch.tensor([5, 4]))
    labels = [torch.tensor([2, 2]), torch.tensor([3])]
    expected = 0.0
    for part, target in zip(logits.split(), labels, strict=True):
        probability = part.softmax(1)
        expected -= math.log(
            sum(
                math.prod(float(probability[t, s]) for t, s in enumerate(path))
                for path in itertools.product(range(4), repeat=len(part))
                if reads_as(path) == target.tolist()
            )
        )
    terms = transcript_loss(logits, [*labels])
    assert float(terms.total) == pytest.approx(expected, rel=1e-5)
    assert terms.num_targets == 3


def test_what_cannot_be_learned_is_left_out_and_counted() -> None:
    logits = Packed(torch.randn(2 + 3 + 3 + 3, 4, requires_grad=True), torch.tensor([2, 3, 3, 3]))
    # two equal symbols need three frames; the third is empty, the fourth has no label
    terms = transcript_loss(
        logits, [torch.tensor([2, 2]), torch.tensor([2, 3]), torch.tensor([], dtype=torch.int64), None]
    )
    assert terms.num_targets == 2
    assert terms.metrics["too_long"] == (1, 4)
    assert terms.metrics["unlabelled"] == (2, 4)
    (gradient,) = torch.autograd.grad(terms.total, logits.values_ND)
    assert [bool(part.any()) for part in gradient.split([2, 3, 3, 3])] == [False, True, False, False]


def test_labels_follow_the_unit() -> None:
    batch = speech([4000, 8000])
    assert [u.tolist() for u in encode_labels(Vocabulary(Labels(symbols=("b", "a"))), batch)] == [[3], [3, 2]]  # type: ignore[union-attr]
    phones = Vocabulary(Labels(unit="phones", symbols=("K",)))
    with pytest.raises(DataError, match="phones"):
        encode_labels(phones, batch)
    batch.phones = [["K", "X"], None]
    first, second = encode_labels(phones, batch)
    assert first is not None
    assert (first.tolist(), second) == ([2, 1], None)


def test_a_text_encoder_is_that_of_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    config = TextConfig(
        labels=Labels(symbols=tuple("abcdefgh")), width=32, num_layers=2, num_heads=4, ffn_width=64, max_tokens=16
    )
    torch.manual_seed(0)
    own = build_encoder(config).eval()
    theirs = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=11,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=16,
            type_vocab_size=1,
        ),
        add_pooling_layer=False,
    ).eval()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        embeddings = theirs.embeddings
        embeddings.token_type_embeddings.weight.zero_()
        text = own.text  # type: ignore[attr-defined]
        embeddings.word_embeddings.weight.copy_(text.embedding.weight)  # type: ignore[union-attr,operator]
        embeddings.position_embeddings.weight.copy_(text.position.weight)  # type: ignore[union-attr,operator]
        embeddings.LayerNorm.load_state_dict(text.norm.state_dict())  # type: ignore[union-attr,operator]
        for mine, other in zip(own.layers, theirs.encoder.layer, strict=True):  # type: ignore[arg-type]
            for number, name in enumerate(("query", "key", "value")):
                linear = getattr(other.attention.self, name)
                linear.weight.copy_(mine.attention.qkv.weight[32 * number : 32 * number + 32])
                linear.bias.copy_(mine.attention.qkv.bias[32 * number : 32 * number + 32])
            other.attention.output.dense.load_state_dict(mine.attention.out.state_dict())
            other.attention.output.LayerNorm.load_state_dict(mine.attention_norm.state_dict())
            other.intermediate.dense.load_state_dict(mine.ffn.up.state_dict())
            other.output.dense.load_state_dict(mine.ffn.down.state_dict())
            other.output.LayerNorm.load_state_dict(mine.ffn_norm.state_dict())
        tokens = torch.randint(0, 11, (9,))
        states = own.context(own.frontend(Packed(tokens, torch.tensor([4, 5]))).latents).states
        expected = theirs(tokens[4:].unsqueeze(0), output_hidden_states=True).hidden_states
    for mine_ND, other_BSD in zip(states, expected, strict=True):
        torch.testing.assert_close(mine_ND.values_ND[4:], other_BSD[0], atol=1e-5, rtol=1e-5)


def test_hidden_rows_are_those_of_the_mask_token_with_their_positions() -> None:
    encoder = build_encoder(TEXT).eval()
    tokens = Packed(torch.tensor([2, 3, 4, 5, 2]), torch.tensor([3, 2]))
    is_masked_N = torch.tensor([False, True, False, False, True])
    hidden = tokens.with_values(tokens.values_ND.masked_fill(is_masked_N, encoder.text.mask_token))  # type: ignore[attr-defined]
    masked = encoder.context(encoder.frontend(tokens).latents, is_masked_N).last
    torch.testing.assert_close(masked.values_ND, encoder.context(encoder.frontend(hidden).latents).last.values_ND)
    with pytest.raises(ValueError, match="at most 16 tokens"):
        encoder.frontend(Packed(torch.zeros(17, dtype=torch.int64), torch.tensor([17])))


@pytest.mark.parametrize("span", [1, 5])
def test_shares_of_what_is_hidden(span: int) -> None:
    lengths = [400] * 50
    tokens_N = torch.full((sum(lengths),), FIRST)
    generators = [torch.Generator().manual_seed(i) for i in range(len(lengths))]
    found = corrupt_tokens(tokens_N, lengths, generators, mask_token=999, choices=(3, 100), probability=0.15, span=span)
    chosen = found.tokens_N[found.is_target_N]
    assert torch.equal(found.tokens_N[~found.is_target_N], tokens_N[~found.is_target_N])
    # spans overlap: of starts without replacement at rate p/span, 1 − (1 − p/span)^span of the tokens are covered
    covered = 1 - (1 - 0.15 / span) ** span
    assert len(chosen) / len(tokens_N) == pytest.approx(covered, abs=0.01)
    assert float((chosen == 999).float().mean()) == pytest.approx(0.8, abs=0.05)
    assert float((chosen == FIRST).float().mean()) == pytest.approx(0.1, abs=0.04)
    assert set(chosen.tolist()) <= {999, FIRST, *range(3, 100)}
    short = corrupt_tokens(
        torch.tensor([2]), [0, 1], generators[:2], mask_token=9, choices=(2, 5), probability=0.15, span=span
    )
    assert short.is_target_N.tolist() == [True]


def test_guesses_are_made_with_the_embeddings_of_the_encoder() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(TEXT)
    objective = build_objective({"name": "bert", "mask_probability": 0.9}, encoder)
    batch = speech(BATCH)
    with torch.no_grad():
        head = objective.head  # type: ignore[union-attr]
        assert isinstance(head, nn.Sequential)
        head[2].weight.zero_()
        head[2].bias.zero_()  # type: ignore[union-attr]
    terms = objective(encoder, batch)
    num_classes = len(encoder.text.vocabulary)  # type: ignore[attr-defined,arg-type]
    assert float(terms.total.detach()) / terms.num_targets == pytest.approx(math.log(num_classes), rel=1e-5)
    with torch.no_grad():
        head[2].bias.copy_(encoder.text.embedding.weight[2] * 1e4)  # type: ignore[union-attr,attr-defined,index]
    guessed, count = objective(encoder, batch).metrics["accuracy"]
    assert 0 < float(guessed) < float(count)  # "a" everywhere: right where it is one


def test_bert_refuses_an_encoder_that_reads_no_text() -> None:
    with pytest.raises(ConfigError, match="text-small"):
        build_objective({"name": "bert"}, build_encoder(WAVE))


def test_a_text_encoder_refuses_samples() -> None:
    encoder = build_encoder(TEXT)
    objective = build_objective({"name": "ctc", "labels": {"symbols": ["a", "b", "c", "d"]}}, encoder)
    with pytest.raises(ConfigError, match=r"reads tokens, but was given samples.*bert"):
        objective(encoder, speech(BATCH))
    assert encoder.frontend(Packed(torch.zeros(0), torch.zeros(2, dtype=torch.int64))).latents.sizes == [0, 0]


def test_always_guessing_the_commonest_token_is_no_success() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(TEXT)
    objective = build_objective({"name": "bert", "mask_probability": 0.9}, encoder)
    batch = speech(BATCH)
    batch.text = ["aaabaaac", "aaaaaaab", "aaaa", "aacaaaaa"]
    with torch.no_grad():
        head = objective.head  # type: ignore[union-attr]
        head[2].weight.zero_()  # type: ignore[index,union-attr,operator]
        head[2].bias.copy_(encoder.text.embedding.weight[2] * 1e4)  # type: ignore[index,union-attr,operator]
    metrics = objective(encoder, batch).metrics
    assert float(metrics["accuracy"][0]) / float(metrics["accuracy"][1]) > 0.6
    (watch,) = objective.watches
    value = float(metrics[watch.metric][0]) / float(metrics[watch.metric][1])
    assert watch.low is not None
    assert value <= watch.low
