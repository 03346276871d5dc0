"""DLPack's capsules, read and made: those of NumPy and PyTorch, and the header's structures."""

import ctypes

import numpy as np
import pytest
import torch

from segmenter_engines.sessions.device import dlpack


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_capsules_are_read_and_made_as_numpy_and_pytorch_do(dtype):
    values = np.arange(24).astype(dtype).reshape(2, 3, 4)
    view = dlpack.read(values.__dlpack__())
    assert (view.pointer, view.shape, view.dtype) == (values.ctypes.data, values.shape, values.dtype)
    assert view.contiguous
    assert not dlpack.read(values.transpose(0, 2, 1).__dlpack__()).contiguous
    assert not dlpack.read(values[:, :, ::2].__dlpack__()).contiguous
    tensor = torch.from_numpy(values)[1:]
    assert dlpack.read(tensor.__dlpack__()).pointer == values[1:].ctypes.data
    owners = []

    class Owner:
        def __del__(self):
            owners.append("gone")

    class Shared:
        def __dlpack_device__(self):
            return (1, 0)

        def __dlpack__(self, **options):
            return dlpack.make(values.ctypes.data, values.shape, values.dtype, (1, 0), Owner())

    for take in (np.from_dlpack, torch.from_dlpack):
        taken = take(Shared())
        assert np.array_equal(np.asarray(taken), values)
        assert owners == []
        del taken
        assert owners == ["gone"]
        owners.clear()
    capsule = Shared().__dlpack__()
    del capsule  # that nobody took
    assert owners == ["gone"]
    assert dlpack._MADE == {}


def test_elements_without_a_name_in_numpy_are_refused():
    with pytest.raises(ValueError, match=r"elements of DLPack type \(4, 16, 1\)"):
        dlpack.read(torch.zeros(3, dtype=torch.bfloat16).__dlpack__())


def test_the_structures_are_those_of_the_header():
    # offsets of dlpack.h on a machine with 64-bit pointers
    fields = {name: getattr(dlpack._Tensor, name).offset for name, _ in dlpack._Tensor._fields_}
    assert fields == {
        **{"data": 0, "device_type": 8, "device_index": 12, "ndim": 16, "code": 20, "bits": 21, "lanes": 22},
        **{"shape": 24, "strides": 32, "byte_offset": 40},
    }
    assert (ctypes.sizeof(dlpack._Tensor), ctypes.sizeof(dlpack._Managed)) == (48, 64)
