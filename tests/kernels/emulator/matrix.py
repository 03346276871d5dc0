"""Matrices held by the threads of a warp or in shared memory, and their products.

Layouts are those of PTX ISA 8.8, 9.7.14 (mma, ldmatrix, stmatrix) and 9.7.15 (wgmma and its matrix descriptors).
"""

from typing import Any

import ml_dtypes
import numpy as np

from tests.kernels.emulator.memory import Array
from tests.kernels.emulator.ptx import WARP, NotKnownError

KINDS: dict[str, Any] = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "s8": np.dtype(np.int8),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "f32": np.dtype(np.float32),
    "s32": np.dtype(np.int32),
}
_LANE = np.arange(WARP)
# bytes of rows that are permuted together, by the two top bits of a matrix descriptor
_SWIZZLED = {0: 16, 1: 128, 2: 64, 3: 32}


def swizzled(at: Array, span: int) -> Array:
    """Addresses of shared memory as hardware permutes 16-byte pieces of rows of `span` bytes; 16 permutes none."""
    return at ^ (((at >> 7) & (span // 16 - 1)) << 4)


def left(registers: Array, kind: Any) -> Array:
    """[..., 32, 4] 32-bit registers of a warp's lanes as the left operand [..., 16, 32 / itemsize]."""
    each = 4 // kind.itemsize
    values = np.ascontiguousarray(registers).view(kind).reshape(*registers.shape, each)
    at, part = np.arange(4), np.arange(each)
    row = (_LANE[:, None, None] // 4 + 8 * (at[:, None] & 1)) + 0 * part
    column = (_LANE[:, None, None] % 4 * each + 4 * each * (at[:, None] >> 1)) + part
    out = np.empty((*registers.shape[:-2], 16, 8 * each), kind)
    out[..., row, column] = values
    return out


def right(registers: Array, kind: Any) -> Array:
    """[..., 32, 2] registers as the right operand, transposed: [..., 8, 32 / itemsize]."""
    each = 4 // kind.itemsize
    values = np.ascontiguousarray(registers).view(kind).reshape(*registers.shape, each)
    at, part = np.arange(2), np.arange(each)
    row = (_LANE[:, None, None] // 4) + 0 * at[:, None] + 0 * part
    column = (_LANE[:, None, None] % 4 * each + 4 * each * at[:, None]) + part
    out = np.empty((*registers.shape[:-2], 8, 8 * each), kind)
    out[..., row, column] = values
    return out


def _places(count: int) -> tuple[Array, Array]:
    """Row and column of register [lane, count] of sums."""
    at = np.arange(count)
    return _LANE[:, None] // 4 + 8 * ((at >> 1) & 1), _LANE[:, None] % 4 * 2 + (at & 1) + 8 * (at >> 2)


def sums(registers: Array, kind: Any) -> Array:
    """[..., 32, n] registers as sums [..., 16, 2 n]."""
    count = registers.shape[-1]
    out = np.empty((*registers.shape[:-2], 16, 2 * count), kind)
    out[(..., *_places(count))] = np.ascontiguousarray(registers).view(kind)
    return out


def of_sums(values: Array) -> Array:
    """The registers [..., 32, n] of sums [..., 16, 2 n]."""
    return np.ascontiguousarray(values[(..., *_places(values.shape[-1] // 2))]).view(np.uint32)


def product(a: Array, b: Array, added: Array) -> Array:
    """a [..., M, K] times b transposed [..., N, K], added to sums of float32 or int32."""
    if added.dtype == np.int32:
        # exact: the sums of a step are far below 2^53
        whole = np.matmul(a.astype(np.float64), b.astype(np.float64).swapaxes(-1, -2))
        return np.clip(whole + added, -(2**31), 2**31 - 1).astype(np.int32)  # where they saturate
    out = np.matmul(a.astype(np.float32), b.astype(np.float32).swapaxes(-1, -2)) + added
    out[np.isnan(out)] = np.nan  # one for all, as hardware gives; a library's depends on the order of its sums
    return out


def described(descriptor: int, rows: int, kind: Any, transposed: bool) -> Array:
    """[n, pieces] addresses of the 16-byte pieces of a matrix [rows, 32 / itemsize] that a descriptor names.

    transposed: its rows, and not what is summed over, lie one after the other; then n is what is summed over.
    """
    start, leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    span = _SWIZZLED[descriptor >> 62]
    if descriptor >> 49 & 7:
        raise NotKnownError("a matrix descriptor with a base offset")
    if not transposed:
        row, piece = np.arange(rows), np.arange(2)
        step = leading if span == 16 else 16
        return swizzled(start + (row[:, None] // 8) * stride + (row[:, None] % 8) * span + piece * step, span)
    if kind.itemsize != 2 or span == 16:
        raise NotKnownError("a transposed matrix of 8 bits, or one that is not swizzled")
    chunk, depth = np.arange(rows // 8), np.arange(16)
    at = start + (depth[:, None] // 8) * stride + (depth[:, None] % 8) * span
    return swizzled(at + (chunk * 16 // span) * leading + chunk * 16 % span, span)


def of_pieces(data: Array, kind: Any, transposed: bool) -> Array:
    """The matrix [rows, 32 / itemsize] of the bytes [n, pieces, 16] at those addresses."""
    values = np.ascontiguousarray(data).view(kind).reshape(len(data), -1)
    return values.T if transposed else values


def load_rows(rows: Array, transposed: bool) -> Array:
    """ldmatrix: rows [warps, n, 8, 16] bytes of n matrices to registers [warps, 32, n]."""
    halves = np.ascontiguousarray(rows).view(np.uint16)  # [warps, n, 8, 8]
    if transposed:
        halves = np.ascontiguousarray(halves.swapaxes(-1, -2))
    pairs = np.ascontiguousarray(halves).view(np.uint32)  # [warps, n, 8, 4]
    return pairs.reshape(*pairs.shape[:2], WARP).swapaxes(1, 2)


def store_rows(registers: Array, transposed: bool) -> Array:
    """stmatrix: registers [warps, 32, n] to rows [warps, n, 8, 16] bytes."""
    pairs = np.ascontiguousarray(registers.swapaxes(1, 2)).reshape(len(registers), -1, 8, 4)
    halves = pairs.view(np.uint16)
    if transposed:
        halves = np.ascontiguousarray(halves.swapaxes(-1, -2))
    return np.ascontiguousarray(halves).view(np.uint8)
