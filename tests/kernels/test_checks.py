from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import segmenter_kernels
from segmenter_kernels import checks, tiles
from tests.kernels.harness import DEVICE


def meta(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def eight_bits(op: Callable[..., Any], dtype: torch.dtype) -> Any:
    return lambda **more: op(
        meta(5, 64, dtype=dtype), meta(8, 64, dtype=dtype), meta(5, dtype=torch.float32),
        meta(8, dtype=torch.float32), meta(8), **more,
    )  # fmt: skip


# a call of each op, of tensors without data; `more`: its options
CALLS: dict[str, Callable[..., Any]] = {
    "add_layernorm": lambda **more: segmenter_kernels.add_layernorm(
        meta(5, 64), meta(5, 64), meta(64), meta(64), 1e-5, **more
    ),
    "attention": lambda **more: segmenter_kernels.attention(meta(1, 5, 192), 1, **more),
    "attention_backward": lambda **more: segmenter_kernels.attention_backward(
        meta(1, 5, 64), meta(1, 5, 192), 1, **more
    ),
    "layernorm": lambda **more: segmenter_kernels.layernorm(meta(5, 64), meta(64), meta(64), 1e-5, **more),
    "layernorm_quantize": lambda **more: segmenter_kernels.layernorm_quantize(
        meta(5, 64), meta(64), meta(64), 1e-5, **more
    ),
    "linear": lambda **more: segmenter_kernels.linear(meta(5, 64), meta(8, 64), meta(8), **more),
    "linear_fp8": eight_bits(segmenter_kernels.linear_fp8, torch.float8_e4m3fn),
    "linear_gelu": lambda **more: segmenter_kernels.linear_gelu(meta(5, 64), meta(8, 64), meta(8), **more),
    "linear_int8": eight_bits(segmenter_kernels.linear_int8, torch.int8),
    "linear_residual": lambda **more: segmenter_kernels.linear_residual(
        meta(5, 64), meta(8, 64), meta(8), meta(5, 8), **more
    ),
    "mask_scores": lambda **more: segmenter_kernels.mask_scores(
        meta(1, 9, 16), meta(1, 3, 16), meta(3), meta(3), 1e-5, **more
    ),
    "merge_windows": lambda **more: segmenter_kernels.merge_windows(meta(1, 3, 4, 4), (8, 8), 8, 8, **more),
    "normalize": lambda **more: segmenter_kernels.normalize(
        meta(1, 4, 4, 3, dtype=torch.uint8), (0, 0, 0), (1, 1, 1), **more
    ),
    "patch_embed": lambda **more: segmenter_kernels.patch_embed(
        meta(1, 3, 8, 8), meta(16, 3, 8, 8), meta(16), meta(1, 2, 16), meta(1, 1, 16), **more
    ),
    "quantize": lambda **more: segmenter_kernels.quantize(meta(5, 64), **more),
    "resize": lambda **more: segmenter_kernels.resize(meta(1, 4, 4, 3, dtype=torch.uint8), (8, 8), **more),
    "rotate": lambda **more: segmenter_kernels.rotate(meta(1, 3, 48), meta(3, 4), meta(3, 4), 2, **more),
    "upsample_argmax": lambda **more: segmenter_kernels.upsample_argmax(meta(1, 3, 4, 4), (8, 8), **more),
}


@pytest.mark.parametrize("name", segmenter_kernels.__all__)
def test_a_device_without_data_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"\w+: \w+ is on meta; Triton kernels need a .* tensor: move it there"):
        CALLS[name]()


@pytest.mark.parametrize("name", segmenter_kernels.__all__)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tile: {}, r"tile \{\}: want \w+, .*num_warps"),
        (lambda tile: dict(list(tile.items())[1:]), r"tile \{.*\}: want \w+, .*num_warps"),
        (lambda tile: tile | {"BLOCK_Q": 16}, r"tile \{.*'BLOCK_Q': 16.*\}: want \w+, .*num_warps"),
        (lambda tile: tile | {"num_warps": 3}, "tile num_warps 3: want a power of two"),
        (lambda tile: tile | {"num_warps": 0}, "tile num_warps 0: want a power of two"),
        (lambda tile: tile | {"num_warps": 4.0}, "tile num_warps 4.0: want a power of two"),
        (list, "tile of type list: want a dictionary of sizes"),
    ],
)
def test_what_is_no_tile_is_named(name: str, change: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=DEVICE)

    used: list[Any] = []

    def seen(op: str, given: Any, committed: Any) -> Any:
        used.append(committed)
        return chosen(op, given, committed)

    chosen = tiles.chosen
    monkeypatch.setattr(tiles, "chosen", seen)
    monkeypatch.setitem(globals(), "meta", zeros)
    CALLS[name]()
    with pytest.raises(ValueError, match=rf"^\w+: {message}"):
        CALLS[name](tile=change(used[-1]))


def test_sizes_of_a_tile_are_whole() -> None:
    committed = {"BLOCK_M": 64, "GROUP": 4, "num_warps": 4}
    for given in (committed, committed | {"GROUP": 3}, committed | {"GROUP": 0}):
        assert tiles.chosen("op", given, committed) is given
    for wrong in (-1, 1.0, "4"):
        with pytest.raises(ValueError, match=f"op: tile GROUP {wrong!r}: want a whole number, 0 or above"):
            tiles.chosen("op", committed | {"GROUP": wrong}, committed)
    with pytest.raises(ValueError, match="op: tile BLOCK_M 48: want a power of two"):
        tiles.chosen("op", committed | {"BLOCK_M": 48}, committed)


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
