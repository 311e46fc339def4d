"""How many cores there are, and one thread where many cost more than they bring: small operations, in turn by several libraries."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import ThreadpoolController


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread inside, in torch and in the BLAS of NumPy and SciPy.

    Both keep threads that wait for the next operation in a busy loop. Code that alternates between them has twice as many
    threads as cores, each in the other's way: solving a linear probe of 300 rows took 20 to 50 times as long as on one thread.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _controller() -> ThreadpoolController:
    """Look once for the libraries that are loaded: looking takes longer than a small fit."""
    import scipy.linalg  # noqa: F401  # else a BLAS that SciPy loads later would not be found

    return ThreadpoolController()
