"""What instructions on registers alone compute, each thread for itself: numpy functions of all threads at once."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from tests.kernels.emulator.memory import Array
from tests.kernels.emulator.ptx import NotKnownError

# the dtype a register is read as, by the type of an instruction; pairs are two values a thread
TYPES: dict[str, Any] = {
    **{f"s{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"{kind}{bits}": np.dtype(f"uint{bits}") for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f16x2": np.dtype(np.float16),
    "bf16x2": np.dtype(ml_dtypes.bfloat16),
    "pred": np.dtype(bool),
}
Entry = tuple[Callable[..., Array], tuple[str, ...]]  # function, types of what it reads


def to_bf16(x: Array) -> Array:
    """float32 rounded to nearest even; the NaN of hardware."""
    bits = x.view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded).view(ml_dtypes.bfloat16)


def _bf16_to_f32(x: Array) -> Array:
    return (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _sum(x: Array, y: Array) -> Array:
    """float64, rounded to odd: rounded once more to fewer bits it is as if rounded once (Boldo and Melquiond 2008)."""
    near = x + y
    part = near - x
    error = (x - (near - part)) + (y - part)
    bits = np.ascontiguousarray(near).view(np.int64)
    step = np.where((error > 0) == (near > 0), 1, -1)
    inexact = (error != 0) & np.isfinite(error)
    return np.where(inexact & (bits & 1 == 0), bits + step, bits).view(np.float64)


def _fma(x: Array, y: Array, z: Array) -> Array:
    # products of float32 are exact in float64
    return _sum(x.astype(np.float64) * y, z.astype(np.float64)).astype(np.float32)


def _narrowed(x: Array) -> Array:
    """float64 to float32, rounded to odd."""
    near = x.astype(np.float32)
    bits = near.view(np.int32)
    step = np.where((x > near) == (near > 0), 1, -1).astype(np.int32)
    return np.where((near != x) & np.isfinite(near) & (bits & 1 == 0), bits + step, bits).view(np.float32)


def _fma_bf16(x: Array, y: Array, z: Array) -> Array:
    x, y, z = (_bf16_to_f32(each).astype(np.float64) for each in (x, y, z))
    return to_bf16(_narrowed(_sum(x * y, z)))


def _add_bf16(x: Array, y: Array) -> Array:
    x, y = (_bf16_to_f32(each).astype(np.float64) for each in (x, y))
    return to_bf16(_narrowed(_sum(x, y)))


def _flushed(x: Array) -> Array:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def _with_one_nan(function: Callable[..., Array]) -> Callable[..., Array]:
    """As hardware: there is one NaN for results, where here its bits depend on which operand had it."""

    def run(*given: Array) -> Array:
        out = function(*given)
        none = np.isnan(out)
        return np.where(none, np.float32(np.nan), out) if none.any() else out

    return run


def _flushing(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *given: _flushed(function(*(_flushed(each) for each in given)))


def _divided(x: Array, y: Array) -> Array:
    """Integers towards zero; by zero, of lanes that are not looked at, something."""
    y = np.where(y == 0, y.dtype.type(1), y)
    return (x - np.fmod(x, y)) // y


def _remainder(x: Array, y: Array) -> Array:
    return np.fmod(x, np.where(y == 0, y.dtype.type(1), y))


def _shift_left(x: Array, by: Array) -> Array:
    return np.where(by < 8 * x.itemsize, x << np.minimum(by, 8 * x.itemsize - 1).astype(x.dtype), x.dtype.type(0))


def _shift_right(x: Array, by: Array) -> Array:
    most = 8 * x.itemsize - 1
    last = x >> np.minimum(by, most).astype(x.dtype)
    return np.where(by <= most, last, last >> x.dtype.type(1)) if x.dtype.kind == "u" else last


def _field(x: Array, at: Array, length: Array) -> Array:
    """A bit field, with its sign where x has one."""
    wide = x.view(f"u{x.itemsize}").astype(np.uint64) >> (at & 0xFF)
    length = length & np.uint32(0xFF)
    mask = (np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)
    wide = wide & mask
    if x.dtype.kind == "i":
        # of a field that goes past the last bit, that bit
        last = np.minimum(at.astype(np.int64) + length - 1, 8 * x.itemsize - 1).astype(np.uint64)
        sign = (x.view(f"u{x.itemsize}").astype(np.uint64) >> last) & np.uint64(1)
        known = (np.uint64(1) << np.minimum(length, last - at + np.uint64(1)).astype(np.uint64)) - np.uint64(1)
        wide = np.where((sign == 1) & (length > 0), wide | ~known, wide)
    return wide.astype(f"u{x.itemsize}")


def _permuted(x: Array, y: Array, selector: Array) -> Array:
    both = x.astype(np.uint64) | (y.astype(np.uint64) << np.uint64(32))
    out = np.zeros(np.broadcast(x, y, selector).shape, np.uint32)
    for at in range(4):
        nibble = (selector >> np.uint32(4 * at)) & np.uint32(0xF)
        byte = ((both >> (np.uint64(8) * (nibble & np.uint32(7)))) & np.uint64(0xFF)).astype(np.uint32)
        byte = np.where(nibble & np.uint32(8), np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0)), byte)
        out |= byte << np.uint32(8 * at)
    return out


def _wide(x: Array, y: Array) -> Array:
    kind = f"{x.dtype.kind}{2 * x.itemsize}"
    return x.astype(kind) * y.astype(kind)


def _high(x: Array, y: Array) -> Array:
    return (_wide(x, y) >> (8 * x.itemsize)).astype(x.dtype)


def _to_integer(rounded: Callable[[Array], Array], kind: np.dtype[Any]) -> Callable[[Array], Array]:
    limits = np.iinfo(kind)

    def convert(x: Array) -> Array:
        x = np.where(np.isnan(x), np.float32(0), x).astype(np.float64)
        return rounded(np.clip(x, limits.min, limits.max)).astype(kind)

    return convert


def _to_e4m3(high: Array, low: Array) -> Array:
    high, low = np.broadcast_arrays(high, low)
    pair = np.stack([low, high], axis=-1)
    limited = np.where(np.isnan(pair), pair, np.clip(pair, -448, 448)).astype(ml_dtypes.float8_e4m3fn)
    return limited.view(np.uint16)[..., 0]


_COMPARED: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": lambda x, y: (x != y) & ~_unordered(x, y),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "num": lambda x, y: ~_unordered(x, y),
    "nan": lambda x, y: _unordered(x, y),
    "equ": lambda x, y: (x == y) | _unordered(x, y),
    "neu": np.not_equal,
    "ltu": lambda x, y: ~(x >= y),
    "leu": lambda x, y: ~(x > y),
    "gtu": lambda x, y: ~(x <= y),
    "geu": lambda x, y: ~(x < y),
}


def _unordered(x: Array, y: Array) -> Array:
    return (x != x) | (y != y)


_INTEGERS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul.lo": np.multiply,
    "mul.hi": _high,
    "mad.lo": lambda x, y, z: x * y + z,
    "div": _divided,
    "rem": _remainder,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "neg": np.negative,
    "abs": np.abs,
}
_FLOATS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "add.rn": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "mul.rn": np.multiply,
    "fma.rn": _fma,
    "div.rn": np.divide,
    "div.full": np.divide,
    "div.approx": np.divide,
    "neg": np.negative,
    "abs": np.abs,
    "min": np.fmin,
    "max": np.fmax,
    "min.NaN": np.minimum,
    "max.NaN": np.maximum,
    "sqrt.approx": np.sqrt,
    "sqrt.rn": np.sqrt,
    "rsqrt.approx": lambda x: np.float32(1) / np.sqrt(x),
    "rcp.approx": lambda x: np.float32(1) / x,
    "lg2.approx": np.log2,
    "ex2.approx": np.exp2,
}
_ROUNDED = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def entry(op: str) -> Entry:
    """What an instruction computes (PTX ISA 8.8, 9.7.1 to 9.7.9). Raises NotKnownError."""
    try:
        return _entry(op)
    except KeyError:
        raise NotKnownError(op) from None


def _entry(op: str) -> Entry:
    base, _, rest = op.partition(".")
    stem, _, kind = op.rpartition(".")
    if base in ("mov", "cvta"):
        return lambda x: x, (kind,)
    if base == "cvt":
        return _conversion(rest)
    if base == "setp":
        how, *more = rest.split(".")
        if len(more) != 1:
            raise NotKnownError(op)
        return _COMPARED[how], (kind, kind)
    if base == "selp":
        return lambda x, y, p: np.where(p, x, y), (kind, kind, "pred")
    if base == "shl":
        return _shift_left, (kind, "u32")
    if base == "shr":
        return _shift_right, (kind, "u32")
    if base == "bfe":
        return _field, (kind, "u32", "u32")
    if op == "prmt.b32":
        return _permuted, ("u32", "u32", "u32")
    if stem == "mul.wide":
        return _wide, (kind, kind)
    if stem == "mad.wide":
        wide = kind[0] + str(2 * int(kind[1:]))
        return lambda x, y, z: _wide(x, y) + z, (kind, kind, wide)
    if kind in ("bf16", "bf16x2"):
        found = {"fma.rn": _fma_bf16, "add": _add_bf16, "add.rn": _add_bf16}.get(stem)
    elif kind in ("f16", "f16x2"):
        found = {"add": np.add, "add.rn": np.add}.get(stem)
    elif kind == "f32":
        found = _FLOATS.get(stem.removesuffix(".ftz"))
        if found is not None and stem.endswith(".ftz"):
            found = _flushing(found)
        if found is not None:
            found = _with_one_nan(found)
    elif kind == "pred":
        found = {"not": np.logical_not, "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}.get(stem)
    else:
        found = _INTEGERS.get(stem)
    if found is None or kind not in TYPES or kind == "f64":
        raise NotKnownError(op)
    return found, (kind,) * _arity(stem)


def _arity(stem: str) -> int:
    """How many operands an instruction reads."""
    if stem.startswith(("fma", "mad")):
        return 3
    return 1 if stem.startswith(("neg", "abs", "not", "sqrt", "rsqrt", "rcp", "lg2", "ex2")) else 2


def _conversion(rest: str) -> Entry:
    *how, to, source = rest.split(".")
    if how not in ([], ["rn"], ["rn", "satfinite"], *([each] for each in _ROUNDED)):
        raise NotKnownError(f"cvt.{rest}")
    if to == "e4m3x2":
        return _to_e4m3, ("f32", "f32")
    if to in ("f16x2", "bf16x2"):
        narrow = to_bf16 if to == "bf16x2" else lambda x: x.astype(np.float16)

        def pair(high: Array, low: Array) -> Array:
            high, low = np.broadcast_arrays(high, low)
            both = narrow(np.stack([low, high], axis=-1).ravel())
            return both.view(np.uint32).reshape(high.shape)

        return pair, ("f32", "f32")
    if source == "bf16" and to == "f32":
        return _bf16_to_f32, ("bf16",)
    if to == "bf16" and source == "f32" and how == ["rn"]:
        return to_bf16, ("f32",)
    kind = TYPES[to]
    if source.startswith("f") and not to.startswith("f"):
        return _to_integer(_ROUNDED[how[0]], kind), (source,)
    if how and how[0] in _ROUNDED:
        return _ROUNDED[how[0]], (source,)
    if "satfinite" in how or "f64" in (to, source) or to == "bf16" or source == "bf16":
        raise NotKnownError(f"cvt.{rest}")
    return lambda x: x.astype(kind), (source,)
