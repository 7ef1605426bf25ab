"""Reads tensors from a legacy `torch.save` file, without torch.

The legacy format is that of PyTorch before 1.6, which is no zip file. A pickle can name any
function of any module and have it called. This module accepts only `OrderedDict`, the tensor
rebuilder and the storage types, and replaces the last two by its own. It refuses any other name
before anything is imported.
"""

import collections
import dataclasses
import math
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


@dataclasses.dataclass
class _Storage:
    """A flat buffer; in the file its numbers follow the pickle that refers to it."""

    dtype: np.dtype
    count: int
    values: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A strided view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        flat = self.storage.values
        if flat is None:
            raise pickle.UnpicklingError("a tensor's storage is missing")
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, flat.dtype)
        # as_strided checks nothing: a view past the end would read memory outside the buffer.
        last = self.offset + sum(
            (n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)
        )
        if min(self.offset, *self.strides, 0) < 0 or last >= flat.size:
            raise pickle.UnpicklingError("a tensor reaches past the end of its storage")
        view = np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, [step * flat.itemsize for step in self.strides]
        )
        return np.array(view)


class _Unpickler(pickle.Unpickler):
    """An unpickler that accepts nothing but named tensors."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(
            f"refused: the pickle asks for {module}.{name}, and only tensors are read here"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, count, view = pid
        if kind != "storage" or view is not None or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"not a storage that can be read here: {pid!r}")
        return self.storages.setdefault(key, _Storage(dtype, count))

    def _rebuild_tensor(
        self,
        storage: _Storage,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        _requires_grad: bool = False,
        _hooks: Any = None,
    ) -> _Tensor:
        return _Tensor(storage, offset, shape, strides)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a state dict from a legacy `torch.save` file.

    Args:
      path: the file.

    Returns:
      The arrays by name, in the file's order, each with the shape and type that it was saved with.

    Raises:
      OSError: the file cannot be read.
      pickle.UnpicklingError: it is not a legacy `torch.save` file, is cut short, or holds anything
        but tensors.
    """
    with Path(path).open("rb") as file:
        try:
            return _read(file)
        except pickle.UnpicklingError:
            raise
        except Exception as error:  # a broken pickle can raise nearly anything
            raise pickle.UnpicklingError(f"not a readable torch.save file: {error}") from error


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    if _Unpickler(file).load() != _MAGIC or _Unpickler(file).load() != _PROTOCOL:
        raise pickle.UnpicklingError("not a legacy torch.save file")
    _Unpickler(file).load()  # about the machine that wrote the file
    unpickler = _Unpickler(file)
    tensors = unpickler.load()
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        count = int(np.frombuffer(file.read(8), "<i8")[0])
        if count != storage.count:
            raise pickle.UnpicklingError(f"storage {key} is of another size than its tensors say")
        raw = file.read(count * storage.dtype.itemsize)
        storage.values = np.frombuffer(raw, storage.dtype, count)
    if not isinstance(tensors, dict) or not all(isinstance(t, _Tensor) for t in tensors.values()):
        raise pickle.UnpicklingError("the file holds something else than named tensors")
    return {name: tensor.array() for name, tensor in tensors.items()}
