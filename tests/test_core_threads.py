"""The cores that there are; one thread inside, and what there was before outside, also after an error."""

import os
import sys

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from isogloss.core.threads import one_thread, usable_cores


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from isogloss.data.loader import DataConfig
    from isogloss.training.provenance import hardware

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    expected = 3 if sys.platform == "linux" else 64
    assert usable_cores() == expected
    assert hardware()["cores"] == expected
    assert DataConfig(path="", num_workers=100).workers == expected


def test_one_thread_inside_and_the_former_number_outside() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    before_torch, before_blas = torch.get_num_threads(), blas_threads()
    torch.set_num_threads(3)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
            assert blas_threads() == {1}
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError), one_thread():
            _ = 1 / 0
        assert torch.get_num_threads() == 3
        assert blas_threads() == before_blas
    finally:
        torch.set_num_threads(before_torch)
