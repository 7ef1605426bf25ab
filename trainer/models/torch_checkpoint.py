"""Reads tensors from a legacy `torch.save` file, without torch.

The legacy format is that of PyTorch before 1.6, which is no zip file. A pickle can name any
function of any module and have it called. This module accepts only `OrderedDict`, the tensor
rebuilder and the storage types, and replaces the last two by its own. It refuses any other name
before anything is imported.
"""

import collections
import math
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Tensor(NamedTuple):
    """The arguments of `_rebuild_tensor_v2`: a strided view of a storage, in elements."""

    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool = False
    hooks: Any = None

    def array(self, storages: Mapping[str, np.ndarray]) -> np.ndarray:
        flat = storages[self.storage]
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
        # Type and size of each storage. In the file, its numbers follow the pickle.
        self.storages: dict[str, tuple[np.dtype, int]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(
            f"refused: the pickle asks for {module}.{name}, and only tensors are read here"
        )

    def persistent_load(self, pid: Any) -> str:
        kind, dtype, key, _location, count, view = pid
        if kind != "storage" or view is not None or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"not a storage that can be read here: {pid!r}")
        self.storages[key] = dtype, count
        return key


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
    storages = {}
    for key in _Unpickler(file).load():
        dtype, count = unpickler.storages[key]
        if np.frombuffer(file.read(8), "<i8")[0] != count:
            raise pickle.UnpicklingError(f"storage {key} is of another size than its tensors say")
        storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
    if not isinstance(tensors, dict) or not all(isinstance(t, _Tensor) for t in tensors.values()):
        raise pickle.UnpicklingError("the file holds something else than named tensors")
    return {name: tensor.array(storages) for name, tensor in tensors.items()}
