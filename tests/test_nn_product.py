"""Products are the same whoever computes them, for every way that a matrix can lie in memory."""

from __future__ import annotations

import pytest
import torch

from isogloss.nn.product import is_fast, linear, multiply


@pytest.mark.parametrize("layout", ["plain", "transposed", "overlapping", "expanded", "sliced"])
def test_products_of_every_layout(layout: str) -> None:
    torch.manual_seed(0)
    store = torch.randn(40_000)
    matrices = {
        "plain": store[:32_000].view(3200, 10),
        "transposed": store[:32_000].view(10, 3200).t(),
        "overlapping": store.as_strided((3200, 10), (5, 1)),
        "expanded": store[:10].expand(3200, 10),
        "sliced": store[: 3200 * 12].view(3200, 12)[:, :10],
    }
    matrix = matrices[layout]
    other = torch.randn(64, 10)
    torch.testing.assert_close(multiply(matrix, other), matrix @ other.t())
    wide = torch.randn(64, 3200)
    assert is_fast(matrix.t(), wide) == is_fast(torch.empty(10, 3200), wide)
    torch.testing.assert_close(multiply(matrix.t(), wide), matrix.t() @ wide.t(), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(multiply(wide, matrix.t()), wide @ matrix, atol=1e-3, rtol=1e-4)


def test_gradients_are_those_of_torch() -> None:
    torch.manual_seed(0)
    values, weight, bias = (torch.randn(s, requires_grad=True) for s in ((3000, 64), (32, 64), (32,)))
    ours = torch.autograd.grad(linear(values, weight, bias).square().mean(), (values, weight, bias))
    theirs = torch.autograd.grad(
        torch.nn.functional.linear(values, weight, bias).square().mean(), (values, weight, bias)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
