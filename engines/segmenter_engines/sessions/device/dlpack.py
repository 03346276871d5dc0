"""DLPack capsules read and made with nothing but ctypes, for machines whose PyTorch knows no CUDA.

Source: dlpack.h, the structures before version 1.0, which every consumer takes and every producer makes when it is
asked for no other.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

NAME = b"dltensor"
KINDS = "iuf"  # type codes 0, 1 and 2: signed, unsigned, floating


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


# prototypes of our own: those of `ctypes.pythonapi` are everybody's
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
# a capsule that dies is no object to hold any more: its address will do
_dying_is = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_dying_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

_MADE: dict[int, Any] = {}  # what capsules that live point into, by the address they carry


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _delete(address: int) -> None:
    _MADE.pop(address, None)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _destroy(capsule: int) -> None:
    # whoever takes the array renames its capsule, and deletes the array in time
    if _dying_is(capsule, NAME):
        _delete(_dying_pointer(capsule, NAME))


@dataclass(frozen=True)
class View:
    """Somebody's array: where it is and what it looks like, and what keeps it there."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # bytes; None for C order
    dtype: np.dtype[Any]
    owner: Any

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in C order without gaps."""
        expected = self.dtype.itemsize
        for size, stride in reversed(list(zip(self.shape, self.strides or (), strict=False))):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True


def read(capsule: Any) -> View:
    """What a capsule nobody has taken yet says; the view holds it, so the array stays.

    Raises ValueError for element types NumPy has no name for.
    """
    address = _pointer(capsule, NAME)
    tensor = _Managed.from_address(address).tensor
    if tensor.lanes != 1 or tensor.code >= len(KINDS) or tensor.bits % 8:
        raise ValueError(f"elements of DLPack type ({tensor.code}, {tensor.bits}, {tensor.lanes})")
    dtype = np.dtype(f"{KINDS[tensor.code]}{tensor.bits // 8}")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides[: tensor.ndim]) if tensor.strides else None
    return View((tensor.data or 0) + tensor.byte_offset, shape, strides, dtype, capsule)


def make(pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: tuple[int, int], owner: Any) -> Any:
    """A capsule for an array in C order; `owner` is held until its consumer is done with it.

    device: DLPack's kind of device, and its number.
    """
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    managed = _Managed()
    tensor = managed.tensor
    tensor.data, (tensor.device_type, tensor.device_index) = pointer, device
    tensor.ndim, tensor.shape = len(shape), sizes
    tensor.code, tensor.bits, tensor.lanes = KINDS.index(dtype.kind), 8 * dtype.itemsize, 1
    managed.deleter = ctypes.cast(_delete, ctypes.c_void_p)
    address = ctypes.addressof(managed)
    _MADE[address] = (managed, sizes, owner)
    return _new(address, NAME, ctypes.cast(_destroy, ctypes.c_void_p))
