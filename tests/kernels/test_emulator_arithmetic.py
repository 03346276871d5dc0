"""What the emulator computes on registers, against PyTorch and by hand."""

import ml_dtypes
import numpy as np
import torch

from tests.kernels.emulator import arithmetic


def of(op: str, *values: np.ndarray) -> np.ndarray:
    function, kinds = arithmetic.entry(op)
    with np.errstate(all="ignore"):
        return function(*(x.view(arithmetic.TYPES[kind]) for x, kind in zip(values, kinds, strict=True)))


def test_conversions_agree_with_pytorch() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 4096, dtype=np.uint32)
    x = np.concatenate([bits.view(np.float32), np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65520, 3.4e38])])
    one = torch.from_numpy(x)
    for op, dtype in (("cvt.rn.f16.f32", torch.float16), ("cvt.rn.bf16.f32", torch.bfloat16)):
        right = one.to(dtype)
        found = torch.from_numpy(np.ascontiguousarray(of(op, x)).view(np.int16)).view(dtype)
        assert ((found == right) | (found.isnan() & right.isnan())).all()
    # of two the first is the upper half
    both = of("cvt.rn.f16x2.f32", np.float32([1.0]), np.float32([2.0]))
    assert both.view(np.float16).tolist() == [2.0, 1.0]


def test_integers_are_those_of_32_bits() -> None:
    u32, s32 = np.uint32, np.int32
    assert of("div.s32", s32([-7, 7, -7]), s32([2, -2, -2])).tolist() == [-3, -3, 3]
    assert of("rem.s32", s32([-7, 7]), s32([2, -2])).tolist() == [-1, 1]
    assert of("shl.b32", u32([1, 1, 1]), u32([31, 32, 99])).tolist() == [1 << 31, 0, 0]
    assert of("shr.u32", u32([1 << 31] * 2), u32([31, 32])).tolist() == [1, 0]
    assert of("shr.s32", s32([-8, -8]), u32([1, 40])).tolist() == [-4, -1]
    assert of("mul.lo.s32", s32([1 << 20]), s32([1 << 20])).tolist() == [0]
    assert of("mul.wide.s32", s32([-1 << 20]), s32([1 << 20])).tolist() == [-1 << 40]
    assert of("bfe.u32", u32([0xABCD]), u32([4]), u32([8])).tolist() == [0xBC]
    assert of("bfe.s32", s32([0xABCD]), u32([4]), u32([8])).view(s32).tolist() == [-0x44]
    assert of("bfe.s32", s32([-1 << 31, 1]), u32([28, 0]), u32([8, 8])).view(s32).tolist() == [-8, 1]
    assert of("prmt.b32", u32([0x33221100]), u32([0x77665584]), u32([0x0C54])).tolist() == [0x00FF5584]
    assert of("cvt.rzi.s16.f32", np.float32([1.9, -1.9, 1e9, np.nan])).tolist() == [1, -1, 32767, 0]
    assert of("cvt.rni.f32.f32", np.float32([0.5, 1.5, -2.5])).tolist() == [0, 2, -2]


def test_floats_are_rounded_once_and_flushed_where_asked() -> None:
    x = np.float32([1 + 2**-12])
    assert of("fma.rn.f32", x, x, np.float32([-1 - 2**-11])).tolist() == [2**-24]
    # just below halfway between two values, which a sum in float64 loses
    assert of("fma.rn.f32", *np.float32([[8388609], [3], [-(2**-40)]])).tolist() == [25165826]
    short = [np.array([value], np.float32).astype(ml_dtypes.bfloat16) for value in (7, 37, -(2**-40))]
    assert of("fma.rn.bf16", *short).astype(np.float32).tolist() == [258]
    infinite = np.float32([-np.inf])
    assert of("fma.rn.f32", one_half := np.float32([0.5]), infinite, one_half).tolist() == [-np.inf]
    tiny = np.float32([-130.0])
    assert of("ex2.approx.f32", tiny).tolist() == [2**-130]
    assert of("ex2.approx.ftz.f32", tiny).tolist() == [0]
    nan, one = np.float32([np.nan]), np.float32([1])
    assert of("max.f32", nan, one).tolist() == [1]
    assert np.isnan(of("max.NaN.f32", nan, one)).all()
    assert of("setp.gtu.f32", nan, one).all()
    assert not of("setp.gt.f32", nan, one).any()
    assert not of("setp.ne.f32", nan, one).any()
