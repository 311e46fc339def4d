"""ALiBi against the dense matrix, and the encoder that sees kept frames only against the one that sees all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from isogloss.core.types import Packed
from isogloss.encoders.wave import AlibiRelative, WaveConfig, WaveEncoder
from isogloss.nn.alibi import AlibiTable, alibi_slopes
from isogloss.nn.attention import packed_attention
from objective_cases import WAVE

ALIBI = WaveConfig.model_validate(
    WAVE.model_dump()
    | {"relative": {"kind": "alibi"}, "position": "conv_stack", "position_kernel": 5, "position_layers": 2}
)


def table(num_heads: int) -> AlibiTable:
    built = AlibiTable(num_heads)
    torch.manual_seed(4)
    torch.nn.init.uniform_(built.weight, -0.3, 2.0)
    return built


def test_slopes_are_the_published_ones() -> None:
    assert alibi_slopes(8) == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(12) == [2.0**-h for h in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
    assert alibi_slopes(16)[::2] == pytest.approx(
        [2.0**-0.5, 2**-1.5, 2**-2.5, 2**-3.5, 2**-4.5, 2**-5.5, 2**-6.5, 2**-7.5]
    )


def dense(built: AlibiTable, size: int) -> Tensor:
    slopes = torch.tensor(alibi_slopes(len(built.weight))) * built.weight.detach().squeeze(1).relu()
    rows = [[[-float(s) * abs(i - j) for j in range(size)] for i in range(size)] for s in slopes]
    return torch.tensor(rows)


def test_terms_of_kept_frames_are_the_dense_submatrix() -> None:
    built, sizes, kept = table(6), [9, 5], [[0, 3, 4, 8], [1, 2]]
    times_K = torch.tensor([t for times in kept for t in times])
    with torch.no_grad():
        whole, terms = built(sizes), built([4, 2], times_K)
        for utterance, size in enumerate(sizes):
            expected_HSS = dense(built, size)
            torch.testing.assert_close(whole.rows(utterance, slice(None), slice(None)), expected_HSS)
            index = torch.tensor(kept[utterance])
            gathered_HSS = expected_HSS[:, index][:, :, index]
            torch.testing.assert_close(terms.rows(utterance, slice(None), slice(None)), gathered_HSS)
            torch.testing.assert_close(terms.rows(utterance, slice(2, 4), slice(1, 2)), gathered_HSS[2:4, 1:2])


def test_attention_with_it_is_the_softmax_of_products_and_terms() -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(14, 6, 8) for _ in range(3))
    built = table(6)
    with torch.no_grad():
        mixed = packed_attention(q, k, v, [9, 5], 0.0, built([9, 5]))
        for first, size in ((0, 9), (9, 5)):
            q_HSd, k_HSd, v_HSd = (part[first : first + size].transpose(0, 1) for part in (q, k, v))
            weights = (q_HSd @ k_HSd.transpose(1, 2) / 8**0.5 + dense(built, size)).softmax(-1)
            torch.testing.assert_close(mixed[first : first + size], (weights @ v_HSd).transpose(0, 1))


def encoder(config: WaveConfig = ALIBI) -> WaveEncoder:
    torch.manual_seed(2)
    built = WaveEncoder(config).eval()
    if config.relative is not None:
        assert isinstance(built.relative, AlibiTable)
        torch.nn.init.uniform_(built.relative.weight, 0.2, 2.0)
    return built


@pytest.mark.parametrize("config", [ALIBI, WAVE])
@torch.no_grad()
def test_one_mask_that_hides_nothing_is_the_plain_encoder(config: WaveConfig) -> None:
    built = encoder(config)
    latents = built.frontend(Packed.from_list([torch.randn(9000), torch.randn(5000)])).latents
    plain = built.context(latents)
    kept = built.context_of_kept(latents, torch.zeros(1, len(latents.values_ND), dtype=torch.bool))
    for mine, theirs in zip(kept.states, plain.states, strict=True):
        torch.testing.assert_close(mine.values_ND, theirs.values_ND)
        assert mine.sizes == theirs.sizes


@torch.no_grad()
def test_copies_are_encoded_each_by_itself_and_never_see_a_masked_frame() -> None:
    built = encoder()
    latents = built.frontend(Packed.from_list([torch.randn(9000), torch.randn(5000)])).latents
    is_masked_MN = torch.rand(3, len(latents.values_ND)) < 0.5
    together = built.context_of_kept(latents, is_masked_MN).last
    parts = together.split()
    for m, is_masked_N in enumerate(is_masked_MN):
        alone = built.context_of_kept(latents, is_masked_N[None]).last
        torch.testing.assert_close(torch.cat(parts[2 * m : 2 * m + 2]), alone.values_ND)
        assert together.sizes[2 * m : 2 * m + 2] == [int((~part).sum()) for part in is_masked_N.split(latents.sizes)]
    # a slow oracle: zero, place, keep, and attend with the dense matrix cut down to the kept frames
    values_ND = built.projection(latents.values_ND) * ~is_masked_MN[0, :, None]
    values_ND = values_ND + built.position(values_ND, latents.sizes)
    first = ~is_masked_MN[0, : latents.sizes[0]]
    state_SD = built.norm(values_ND[: latents.sizes[0]][first])
    assert isinstance(built.relative, AlibiTable)
    bias_HSS = dense(built.relative, latents.sizes[0])[:, first][:, :, first]
    for layer in built.layers:
        q, k, v = (
            part.unflatten(1, (2, -1)).transpose(0, 1) for part in layer.attention.qkv(state_SD).split(32, dim=1)
        )
        weights = (q @ k.transpose(1, 2) / 4.0 + bias_HSS).softmax(-1)
        state_SD = layer.attention_norm(state_SD + layer.attention.out((weights @ v).transpose(0, 1).flatten(1)))
        state_SD = layer.ffn_norm(state_SD + layer.ffn(state_SD))
    torch.testing.assert_close(parts[0], state_SD, rtol=1e-4, atol=1e-5)
    changed = latents.values_ND.clone()
    changed[is_masked_MN[0]] += 1.0
    again = built.context_of_kept(latents.with_values(changed), is_masked_MN[:1]).last
    torch.testing.assert_close(again.values_ND, torch.cat(parts[:2]))


def test_no_bias_for_queries_keys_and_values() -> None:
    built = WaveEncoder(WAVE.model_copy(update={"qkv_bias": False}))
    assert all(layer.attention.qkv.bias is None for layer in built.layers)
    assert sum(p.numel() for p in WaveEncoder(WAVE).parameters()) - sum(p.numel() for p in built.parameters()) == 2 * 96
    assert built([torch.randn(2000)]).last.values_ND.isfinite().all()


def test_the_learned_slopes_get_a_gradient() -> None:
    built = WaveEncoder(ALIBI.model_copy(update={"relative": AlibiRelative()})).train()
    assert isinstance(built.relative, AlibiTable)
    built([torch.randn(9000)]).last.values_ND.square().mul(torch.arange(32.0)).sum().backward()
    assert built.relative.weight.grad is not None
    assert built.relative.weight.grad.all()
