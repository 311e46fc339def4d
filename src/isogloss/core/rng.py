"""Counter-based randomness: every draw is a function of what it is for, so a resumed run needs no random state.

A seed is the hash of the things that name a draw (run seed, step, rank, utterance, purpose). Two runs that ask for the same
draw get the same numbers, whatever happened before.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MASK_63 = (1 << 63) - 1


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2^63) that is a hash of the parts; ("a", 1) and ("a1",) give different seeds."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = str(part).encode()
        digest.update(f"{type(part).__name__}{len(encoded)}:".encode())
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little") & _MASK_63


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator seeded by the hash of the parts."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def utterance_generators(seeds_B: Tensor, purpose: str, device: torch.device | str = "cpu") -> list[torch.Generator]:
    """Return one generator per utterance for one purpose ("masks", "negatives", …); the numbers depend on the device."""
    return [generator(seed, purpose, device=device) for seed in seeds_B.tolist()]
