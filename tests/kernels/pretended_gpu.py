"""Launches as on an H100, without one: tensors hold nothing, arguments are specialised, the front end compiles.

A size of 1 is a constant to the compiler and a multiple of 16 is known to be one, which neither Triton's interpreter
nor the forms compiled ahead of time show. Run with Triton's interpreter off; prints each launch that fails.
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton._C.libtriton import ir
from triton.compiler import make_backend

import segmenter_kernels as k
from segmenter_kernels import pretended, workloads

ARCHITECTURE = 90
F32, I8, U8, F8 = torch.float32, torch.int8, torch.uint8, torch.float8_e4m3fn
t = pretended.empty


def patches(image: Tensor, P: int, C: int, grid: int, **named: Any) -> Tensor:
    return k.patch_embed(image, t(C, 3, P, P), t(C), t(1, 1 + grid, C), t(1, 1, C), **named)


HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
SMALLEST: dict[str, Callable[[], object]] = {
    "attention, 1 token": lambda: k.attention(t(1, 1, 192), 1),
    "attention, 1 token of 80": lambda: k.attention(t(1, 1, 240), 1),
    "attention, whole tiles": lambda: k.attention(t(2, 128, 192), 1),
    "attention in float32": lambda: k.attention(t(1, 1, 192, dtype=F32), 1),
    "attention_backward": lambda: k.attention_backward(t(1, 1, 64), t(1, 1, 192), 1),
    "patch_embed, 1 patch": lambda: patches(t(1, 3, 16, 16), 16, 1, 1),
    "patch_embed, 1 patch of pixels": lambda: patches(t(1, 16, 16, 3, dtype=U8), 16, 1, 1, **HALF),
    "patch_embed, 1 pixel": lambda: patches(t(1, 1, 1, 3, dtype=U8), 14, 1, 1, **HALF),
    "patch_embed, uneven": lambda: patches(t(2, 500, 500, 3, dtype=U8), 16, 768, 1024, **HALF),
    "mask_scores": lambda: k.mask_scores(t(1, 1, 1), t(1, 1, 1), t(1), t(1), 1e-5),
    "mask_scores, 2 classes": lambda: k.mask_scores(t(1, 5, 1), t(1, 2, 1), t(2), t(2), 1e-5),
    "upsample_argmax": lambda: k.upsample_argmax(t(1, 1, 1, 1), (1, 1)),
    "upsample_argmax, sure": lambda: k.upsample_argmax(t(1, 3, 1, 1), (5, 5), (1, 1), confidence=True),
    "upsample_argmax, down": lambda: k.upsample_argmax(t(2, 300, 32, 32), (1, 1)),
    "merge_windows": lambda: k.merge_windows(t(1, 1, 1, 1), (1, 1), 1, 1),
    "merge_windows, uneven": lambda: k.merge_windows(t(6, 3, 1, 1), (17, 33), 16, 16),
    "merge_windows, odd": lambda: k.merge_windows(t(1, 1, 1, 1), (1, 1), 1, 1, odd=t(1, dtype=torch.int32)),
    "add_layernorm": lambda: k.add_layernorm(t(1, 1), t(1, 1), t(1), t(1), 1e-5),
    "add_layernorm in float32": lambda: k.add_layernorm(
        *(t(*s, dtype=F32) for s in ((1, 1), (1, 1), (1,), (1,))), 1e-5
    ),
    "layernorm": lambda: k.layernorm(t(1, 1), t(1), t(1), 1e-5),
    "layernorm in float32": lambda: k.layernorm(*(t(*s, dtype=F32) for s in ((1, 1), (1,), (1,))), 1e-5),
    "layernorm_quantize": lambda: k.layernorm_quantize(t(1, 1), t(1), t(1), 1e-5),
    "layernorm_quantize, a sum": lambda: k.layernorm_quantize(t(1, 1), t(1), t(1), 1e-5, r=t(1, 1), dtype=F8),
    "rotate": lambda: k.rotate(t(1, 1, 6), t(1, 1), t(1, 1), 1),
    "rotate by float32": lambda: k.rotate(t(2, 5, 384), t(5, 16, dtype=F32), t(5, 16, dtype=F32), 4),
    "normalize, 1 pixel": lambda: k.normalize(t(1, 1, 1, 3, dtype=U8), **HALF),
    "normalize": lambda: k.normalize(t(2, 64, 80, 3, dtype=U8), **HALF),
    "resize, 1 pixel": lambda: k.resize(t(1, 1, 1, 3, dtype=U8), (2, 2)),
    "resize to 1 pixel": lambda: k.resize(t(2, 64, 80, 3, dtype=U8), (1, 1)),
    "quantize": lambda: k.quantize(t(1, 1)),
    "quantize by a scale": lambda: k.quantize(t(1, 1), scale=t(dtype=F32)),
    "quantize to float8": lambda: k.quantize(t(1, 1), dtype=F8),
    "linear": lambda: k.linear(t(1, 1), t(1, 1), t(1)),
    "linear_gelu": lambda: k.linear_gelu(t(1, 1), t(1, 1), t(1)),
    "linear_residual": lambda: k.linear_residual(t(1, 1), t(1, 1), t(1), t(1, 1)),
    "linear_int8": lambda: k.linear_int8(t(1, 1, dtype=I8), t(1, 1, dtype=I8), t(1, dtype=F32), t(1, dtype=F32), t(1)),
    "linear_int8 to int8": lambda: k.linear_int8(
        t(9, 64, dtype=I8),
        t(32, 64, dtype=I8),
        t(dtype=F32),
        t(32, dtype=F32),
        t(32),
        gelu=True,
        out_scale=t(dtype=F32),
    ),
    "linear_fp8": lambda: k.linear_fp8(t(1, 1, dtype=F8), t(1, 1, dtype=F8), t(1, dtype=F32), t(1, dtype=F32), t(1)),
}


def front_end(source: Any, target: Any = None, options: Any = None, **_: Any) -> Any:
    """Python to Triton's own language: where a constant without the methods of a tensor is found out."""
    backend = make_backend(target)
    parsed = backend.parse_options(dict(options or {}, **source.parse_options()))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    source.make_ir(target, parsed, backend.get_codegen_implementation(parsed), backend.get_module_map(), context)
    return SimpleNamespace()


def main() -> int:
    """Launch everything; the number of launches that failed, and one more where a kernel has more forms than it should.

    Attention has one for any number of tokens and of heads that takes the same tile.
    """
    calls = dict(SMALLEST)
    for op in workloads.OPS:
        for workload in workloads.of_op(op, torch.float16, (1, 32), ("B",)):
            arguments = workload.draw(lambda *shape, scale=1.0: t(*shape))
            calls[f"{op} {workload.shape}"] = lambda w=workload, a=arguments: w.launch(*a)
    failed = 0
    for name, call in calls.items():
        try:
            with pretended.gpu(ARCHITECTURE, front_end), torch.inference_mode():
                call()
        except Exception as error:
            failed += 1
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            print(f"{name}: {type(error).__name__}: {' '.join(str(cause).split())[-200:]}")
    for dtype in (torch.float16, F32):  # by descriptors and by pointers
        forms: set[str] = set()
        with pretended.gpu(ARCHITECTURE, lambda source, found=forms, **_: found.add(source.hash())):
            for N, A in ((1, 1), (16, 2), (97, 16), (1024, 3)):
                k.attention_backward(t(2, N, 96 * A, dtype=dtype), t(2, N, 288 * A, dtype=dtype), A)
        if len(forms) != 3:
            failed += 1
            print(f"attention, {dtype}: {len(forms)} forms, wanted 3: forward, and gradients of queries and of keys")
    print(f"{len(calls)} launches, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(main())
