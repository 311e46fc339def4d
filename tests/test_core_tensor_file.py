"""The one-pass writer: what safetensors' own reader and writer say of its files."""

from __future__ import annotations

import hashlib
import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from isogloss.core.tensor_file import write_tensors


def test_the_reader_of_safetensors_gets_every_bit_back(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    wide = torch.randn(300, 1001, generator=random)
    tensors = {
        "wide": wide,
        "transposed": wide[:7].T,
        "number": torch.tensor(2.5, dtype=torch.float64),
        "none": torch.zeros(0, 3),
        "flags": torch.tensor([True, False, True]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "half": torch.randn(3, 3, generator=random).half(),
        "brain": torch.randn(5, generator=random).bfloat16(),
        "parameter": torch.nn.Parameter(torch.randn(2, generator=random)),
        "größe/名": torch.arange(3),
        **{str(kind): torch.ones(1, dtype=kind) for kind in (torch.int8, torch.int16, torch.int32)},
    }
    path = tmp_path / "x.safetensors"
    digest = write_tensors(path, tensors)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor.detach()), name
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert length % 8 == 0
    assert all(row["data_offsets"][0] % tensors[name].element_size() == 0 for name, row in header.items())


def test_the_writer_of_safetensors_writes_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 2), "a": torch.zeros(()), "c.d": torch.arange(4)}
    write_tensors(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_disk_that_refuses_is_an_os_error(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_tensors(tmp_path / "x", {"a": torch.zeros(2000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
