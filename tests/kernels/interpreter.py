"""Triton's CPU interpreter, made to compute what a GPU computes, for tests.

As it comes (3.8), the interpreter holds bf16 and fp8 as integers and adds, multiplies and compares those integers; it
rounds float32 to bf16 towards zero, and reads 0 where a masked load leaves a lane undefined. Here values of those types
are real numbers between operations and are rounded to nearest even after each, libdevice works, and an undefined lane
is NaN, so that one that leaks is seen. It also patches each kernel's modules once a launch and not once a call, which
halves the time. `install()` must run before a kernel is launched, with TRITON_INTERPRET=1 set before Triton is
imported.
"""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import triton.language as tl
import triton.runtime.interpreter as stock
from triton.language.extra import libdevice

Builder: Any = stock.InterpreterBuilder
Handle: Any = stock.TensorHandle
_STORED_AS_INTEGERS = {
    tl.bfloat16: ml_dtypes.bfloat16,
    tl.float8e4nv: ml_dtypes.float8_e4m3fn,
    tl.float8e5: ml_dtypes.float8_e5m2,
}
_LARGEST = {tl.float8e4nv: 448.0, tl.float8e5: 57344.0}  # conversions to fp8 saturate
_UNDEFINED_INTEGER = 0x5A
_NUMPY: dict[str, Callable[..., Any]] = {
    "tanh": np.tanh,
    "rint": np.rint,
    "nearbyint": np.rint,
    "exp": np.exp,
    "erf": stock.np_erf_fp32,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}


def _special(handle: Any) -> bool:
    return handle.dtype.scalar in _STORED_AS_INTEGERS


def _values(handle: Any) -> Any:
    kind = _STORED_AS_INTEGERS.get(handle.dtype.scalar)
    return handle.data if kind is None else np.ascontiguousarray(handle.data).view(kind).astype(np.float32)


def _stored(values: Any, dtype: Any) -> Any:
    """Values as a handle of `dtype`, rounded to nearest even."""
    kind = _STORED_AS_INTEGERS.get(dtype)
    if kind is None:
        return Handle(np.asarray(values).astype(stock._get_np_dtype(dtype)), dtype)
    values = np.asarray(values, dtype=np.float32)
    if dtype in _LARGEST:
        values = np.where(np.isnan(values), values, np.clip(values, -_LARGEST[dtype], _LARGEST[dtype]))
    return Handle(values.astype(kind).view(stock._get_np_dtype(dtype)), dtype)


def _cast(self: Any, source: Any, wanted: Any, *_: Any) -> Any:
    return _stored(_values(source), wanted.scalar)


def _convert(self: Any, source: Any, wanted: Any, rounding: Any) -> Any:
    return _stored(_values(source), wanted.scalar)


def _binary(original: Callable[..., Any]) -> Callable[..., Any]:
    def binary_op(self: Any, left: Any, right: Any, op: Callable[..., Any]) -> Any:
        if not (_special(left) or _special(right)):
            return original(self, left, right, op)
        result = op(_values(left), _values(right))
        return Handle(result, tl.int1) if result.dtype == np.bool_ else _stored(result, left.dtype.scalar)

    return binary_op


def _unary(self: Any, x: Any, op: Callable[..., Any]) -> Any:
    return _stored(op(_values(x)), x.dtype.scalar)


def _fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    # rounded once, as hardware does: products of float32 are exact in float64
    wide = np.float64 if z.dtype.scalar == tl.float32 else _values(z).dtype
    return _stored(_values(x).astype(wide) * _values(y) + _values(z), z.dtype.scalar)


def _dot(self: Any, a: Any, b: Any, accumulator: Any, input_precision: Any, _: Any) -> Any:
    # float32 products are summed in float64: a BLAS's order of summing must not decide whether a kernel passes
    wide = np.int32 if a.dtype.is_int() else np.float64 if a.dtype.scalar == tl.float32 else np.float32
    product = np.matmul(_values(a).astype(wide), _values(b).astype(wide))
    return _stored(product + accumulator.data, accumulator.dtype.scalar)


def _masked_load(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_masked_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
        if other is None:
            dtype = pointers.get_element_ty()
            filler = np.nan if dtype.is_floating() else _UNDEFINED_INTEGER
            other = _stored(np.full(pointers.data.shape, filler, dtype=np.float32), dtype)
        return original(self, pointers, mask, other, *rest, **named)

    return create_masked_load


def _library_call(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **_: Any) -> Any:
        first = arguments[0]
        values = function(*(_values(x.handle) for x in arguments))
        return tl.core.tensor(_stored(values, first.handle.dtype.scalar), first.type)

    return call


def _patch_once_a_launch() -> None:
    patched: dict[int, Any] = {}
    launch = stock.GridExecutor.__call__

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        module = id(self.fn.__globals__)
        if module not in patched:
            patched[module] = stock._patch_lang(self.fn)
        return self.rewrite()(*arguments, **named)

    def launched(self: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return launch(self, *arguments, **named)
        finally:
            for scope in reversed(patched.values()):
                scope.restore()
            patched.clear()

    stock.InterpretedFunction.__call__, stock.GridExecutor.__call__ = call, launched


def install() -> None:
    """Repair the interpreter of this process; a second call changes nothing."""
    if getattr(Builder, "repaired", False):
        return
    Builder.repaired = True
    Builder.cast_impl, Builder.create_fp_to_fp = _cast, _convert
    Builder.binary_op, Builder.unary_op = _binary(Builder.binary_op), _unary
    Builder.create_fma, Builder.create_dot = _fma, _dot
    Builder.create_masked_load = _masked_load(Builder.create_masked_load)
    for name, function in _NUMPY.items():
        setattr(libdevice, name, _library_call(function))
    _patch_once_a_launch()
