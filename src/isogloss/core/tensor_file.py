"""Write safetensors in one pass: each byte is hashed on its way to the file, and none is copied that lies on the CPU.

The format (https://github.com/huggingface/safetensors): eight bytes with the length of a JSON header, little-endian; the header
with dtype, shape and place of each tensor; the tensors' bytes, end to end.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK = 1 << 20  # bytes: what was just hashed is still in the processor's cache when it is written


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as a new safetensors file, bring it to the disk, and return the SHA-256 of what was written.

    The hash is of the bytes in memory, so it also tells a write that went wrong. Raises `OSError` where the disk refuses.
    """
    # The widest numbers first: then each tensor is aligned to its own width.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        _put(file.fileno(), memoryview(len(text).to_bytes(8, "little") + text), digest)
        for _, tensor in ordered:
            if tensor.numel():
                flat_W = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                _put(file.fileno(), flat_W.numpy().data, digest)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _put(descriptor: int, data: memoryview, digest: hashlib._Hash) -> None:
    for first in range(0, len(data), _CHUNK):
        chunk = data[first : first + _CHUNK]
        digest.update(chunk)
        while chunk:
            chunk = chunk[os.write(descriptor, chunk) :]
