"""Read the tensors of a torch file without running anything that is in it.

A pickle is a program: it names functions and calls them. This reader lets it name two kinds of things, tensors and plain
containers. Every other name becomes an inert object that remembers what it was given and does nothing, so a
configuration of an unknown class (fairseq stores OmegaConf and argparse objects) is data, and `os.system` is a name.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from isogloss.core.errors import CheckpointError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


class Inert:
    """Stands for an object of a class that is not a tensor or a plain container: keeps what it was given, does nothing."""

    origin = ""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Inert:
        """Keep the arguments of the call that a pickle asks for."""
        self = super().__new__(cls)
        self.__dict__.update({"arguments": arguments, "state": None, "items": []})
        return self

    def __init__(self, *arguments: Any, **keywords: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __call__(self, *arguments: Any) -> Inert:
        """Do nothing."""
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__["items"].append((key, value))

    def append(self, value: Any) -> None:
        """Keep a value that a pickle appends."""
        self.__dict__["items"].append((None, value))

    def extend(self, values: Any) -> None:
        """Keep values that a pickle appends."""
        for value in values:
            self.append(value)

    def add(self, value: Any) -> None:
        """Keep a value that a pickle adds to a set."""
        self.append(value)

    def __repr__(self) -> str:
        return f"Inert({self.origin})"


class _PlainDict(dict[Any, Any]):
    """An OrderedDict without attributes: what a pickle would set on it is dropped."""

    def __setstate__(self, state: Any) -> None: ...


class _Sealed:
    """Something that a pickle may hold but not change: there is nowhere to write to, and its state cannot be set."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None: ...


class _StorageKind(_Sealed):
    """The type of a storage, as a pickle names it."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Storage(_Sealed):
    """The values of a storage."""

    __slots__ = ("values",)

    def __init__(self, values: Tensor) -> None:
        self.values = values


class StoredTensor(_Sealed):
    """A tensor as the file describes it; it is made when asked for, and checked then."""

    __slots__ = ("_offset", "_size", "_storage", "_stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any) -> None:
        self._storage, self._offset, self._size, self._stride = storage, offset, size, stride

    def tensor(self) -> Tensor:
        """Return the tensor; `CheckpointError` where it does not lie inside its storage."""
        try:
            count = 1
            for n in self._size:
                count *= n
            if count > len(self._storage.values):
                raise CheckpointError("a tensor is larger than its storage")
            # as_strided checks that the last element lies inside.
            return torch.as_strided(self._storage.values, tuple(self._size), tuple(self._stride), self._offset)
        except (RuntimeError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"a tensor does not lie inside its storage ({str(error)[:120]})") from None


class _Maker(_Sealed):
    """One of the few things that a pickle may call."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)


_MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): lambda items=(): _PlainDict(items),
    ("torch._utils", "_rebuild_tensor"): lambda storage, offset, size, stride: StoredTensor(
        storage, offset, size, stride
    ),
    ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: StoredTensor(
        storage, offset, size, stride
    ),
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
}

Storages = Callable[[str, torch.dtype, int], Tensor]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, storages: Storages) -> None:
        super().__init__(file, encoding="utf-8")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageKind(_STORAGES[name])
        if (module, name) in _MAKERS:
            return _Maker(_MAKERS[module, name])
        return type("Inert", (Inert,), {"origin": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError("an unknown kind of persistent object")
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, _StorageKind) or not isinstance(key, str) or not isinstance(count, int) or count < 0:
            raise pickle.UnpicklingError("a storage that is not described as torch does it")
        if view and view[0] is not None:
            raise pickle.UnpicklingError("a view of a storage, which torch has not written since 0.4")
        return _Storage(self._storages(key, kind.dtype, count))


def read_torch_file(path: Path) -> Any:
    """Return the content of a `.pt` or `.bin` file: `StoredTensor`, plain containers, and `Inert` objects for all else.

    Both of torch's layouts are read (zip archive, and the one before torch 1.6). Raises `CheckpointError` where the file is
    not one of them or is damaged.
    """
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                return _read_zip(file)
            file.seek(0)
            return _read_legacy(file, path.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    # A damaged pickle can fail in any of the ways in which a program can; none of them is ours.
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a torch file, or damaged ({type(error).__name__}: {str(error)[:200]}); download it again"
        ) from None


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError("a zip archive, but not one that torch.save wrote")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in records and archive.read(f"{root}byteorder") != b"little":
            raise CheckpointError("written on a big-endian machine, which is not supported")
        if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
            raise CheckpointError("its archive is compressed, which torch.save never does")
        known: dict[str, Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in known:
                known[key] = _from_bytes(bytearray(archive.read(f"{root}data/{key}")), dtype, count)
            return known[key]

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), storage).load()


def _read_legacy(file: BinaryIO, size: int) -> Any:
    def refuse(key: str, dtype: torch.dtype, count: int) -> Tensor:
        raise pickle.UnpicklingError("a storage in the header")

    if _Unpickler(file, refuse).load() != _LEGACY_MAGIC or _Unpickler(file, refuse).load() != _LEGACY_PROTOCOL:
        raise CheckpointError("not a file that torch.save wrote")
    _Unpickler(file, refuse).load()  # byte order and sizes of the machine that wrote it
    buffers: dict[str, tuple[bytearray, Tensor]] = {}
    promised = 0

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal promised
        if key not in buffers:
            promised += count * dtype.itemsize
            if promised > size:
                raise CheckpointError("its tensors are larger than the file")
            data = bytearray(count * dtype.itemsize)
            buffers[key] = data, _from_bytes(data, dtype, count)
        return buffers[key][1]

    content = _Unpickler(file, storage).load()
    for key in _Unpickler(file, refuse).load():
        data, tensor = buffers[key]
        if int.from_bytes(file.read(8), "little") != len(tensor) or file.readinto(data) != len(data):  # type: ignore[attr-defined]
            raise CheckpointError("a tensor is cut off")
    return content


def _from_bytes(data: bytearray, dtype: torch.dtype, count: int) -> Tensor:
    if len(data) < count * dtype.itemsize:
        raise CheckpointError("a storage is shorter than the tensors that lie in it")
    return torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
