"""A zero that gives parameters a gradient: processes of a group expect one for every parameter, used or not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def zero_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return 0 with a zero gradient for each of these parameters that is trained; a sharded one gets it for its own part."""
    first = []
    for parameter in parameters:
        if parameter.requires_grad:
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            first.append(local.reshape(-1)[:1].float())
    # the sum of none must be a zero as well; values that are not finite would make 0 · x one that is not a number
    return 0.0 * torch.nan_to_num(torch.cat(first)).sum() if first else torch.zeros(())
