"""Which precision a product runs in: hand-written autograd functions follow autocast as torch's own do."""

from __future__ import annotations

import torch
from torch import Tensor


def to_product_dtype(values: Tensor) -> Tensor:
    """Cast to autocast's type where it is on for the tensor's device; otherwise return the tensor itself."""
    kind = values.device.type
    if torch.is_autocast_enabled(kind) and values.is_floating_point():
        return values.to(torch.get_autocast_dtype(kind))
    return values
