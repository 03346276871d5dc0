from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import segmenter_kernels
from segmenter_kernels import checks


def meta(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def eight_bits(op: Callable[..., Any], dtype: torch.dtype) -> Any:
    return lambda: op(
        meta(5, 64, dtype=dtype), meta(8, 64, dtype=dtype), meta(5, dtype=torch.float32),
        meta(8, dtype=torch.float32), meta(8),
    )  # fmt: skip


CALLS: dict[str, Callable[[], Any]] = {
    "add_layernorm": lambda: segmenter_kernels.add_layernorm(meta(5, 64), meta(5, 64), meta(64), meta(64), 1e-5),
    "attention": lambda: segmenter_kernels.attention(meta(1, 5, 192), 1),
    "attention_backward": lambda: segmenter_kernels.attention_backward(meta(1, 5, 64), meta(1, 5, 192), 1),
    "layernorm": lambda: segmenter_kernels.layernorm(meta(5, 64), meta(64), meta(64), 1e-5),
    "layernorm_quantize": lambda: segmenter_kernels.layernorm_quantize(meta(5, 64), meta(64), meta(64), 1e-5),
    "linear": lambda: segmenter_kernels.linear(meta(5, 64), meta(8, 64), meta(8)),
    "linear_fp8": eight_bits(segmenter_kernels.linear_fp8, torch.float8_e4m3fn),
    "linear_gelu": lambda: segmenter_kernels.linear_gelu(meta(5, 64), meta(8, 64), meta(8)),
    "linear_int8": eight_bits(segmenter_kernels.linear_int8, torch.int8),
    "linear_residual": lambda: segmenter_kernels.linear_residual(meta(5, 64), meta(8, 64), meta(8), meta(5, 8)),
    "mask_scores": lambda: segmenter_kernels.mask_scores(meta(1, 9, 16), meta(1, 3, 16), meta(3), meta(3), 1e-5),
    "merge_windows": lambda: segmenter_kernels.merge_windows(meta(1, 3, 4, 4), (8, 8), 8, 8),
    "normalize": lambda: segmenter_kernels.normalize(meta(1, 4, 4, 3, dtype=torch.uint8), (0, 0, 0), (1, 1, 1)),
    "patch_embed": lambda: segmenter_kernels.patch_embed(
        meta(1, 3, 8, 8), meta(16, 3, 8, 8), meta(16), meta(1, 2, 16), meta(1, 1, 16)
    ),
    "quantize": lambda: segmenter_kernels.quantize(meta(5, 64)),
    "resize": lambda: segmenter_kernels.resize(meta(1, 4, 4, 3, dtype=torch.uint8), (8, 8)),
    "rotate": lambda: segmenter_kernels.rotate(meta(1, 3, 48), meta(3, 4), meta(3, 4), 2),
    "upsample_argmax": lambda: segmenter_kernels.upsample_argmax(meta(1, 3, 4, 4), (8, 8)),
}


@pytest.mark.parametrize("name", segmenter_kernels.__all__)
def test_a_device_without_data_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"\w+: \w+ is on meta; Triton kernels need a .* tensor: move it there"):
        CALLS[name]()


def test_a_gpu_that_is_not_the_current_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    first, second = (SimpleNamespace(device=torch.device("cuda", index)) for index in range(2))
    checks.on_gpu("op", x=first, y=first)
    with pytest.raises(
        ValueError, match=r"op: x is on cuda:1 .* the current GPU is 0; use `with torch.cuda.device.1.:`"
    ):
        checks.on_gpu("op", x=second, y=second)
    with pytest.raises(ValueError, match="op: y is on cuda:1 and x on cuda:0; move one"):
        checks.on_gpu("op", x=first, y=second)
