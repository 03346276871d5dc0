import itertools
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import segmenter_kernels
from segmenter_kernels import checks, quantized_linear, tiles
from tests.kernels.harness import DEVICE


def meta(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def eight_bits(op: Callable[..., Any], dtype: torch.dtype) -> Any:
    return lambda new, **more: op(
        new(5, 64, dtype=dtype), new(8, 64, dtype=dtype), new(5, dtype=torch.float32),
        new(8, dtype=torch.float32), new(8), **more,
    )  # fmt: skip


# a call of each op, of tensors that `new` makes of a shape and a dtype; `more`: its options
CALLS: dict[str, Callable[..., Any]] = {
    "add_layernorm": lambda new, **more: segmenter_kernels.add_layernorm(
        new(5, 64), new(5, 64), new(64), new(64), 1e-5, **more
    ),
    "attention": lambda new, **more: segmenter_kernels.attention(new(1, 5, 192), 1, **more),
    "attention_backward": lambda new, **more: segmenter_kernels.attention_backward(
        new(1, 5, 64), new(1, 5, 192), 1, **more
    ),
    "layernorm": lambda new, **more: segmenter_kernels.layernorm(new(5, 64), new(64), new(64), 1e-5, **more),
    "layernorm_quantize": lambda new, **more: segmenter_kernels.layernorm_quantize(
        new(5, 64), new(64), new(64), 1e-5, **more
    ),
    "linear": lambda new, **more: segmenter_kernels.linear(new(5, 64), new(8, 64), new(8), **more),
    "linear_fp8": eight_bits(segmenter_kernels.linear_fp8, torch.float8_e4m3fn),
    "linear_gelu": lambda new, **more: segmenter_kernels.linear_gelu(new(5, 64), new(8, 64), new(8), **more),
    "linear_int8": eight_bits(segmenter_kernels.linear_int8, torch.int8),
    "linear_residual": lambda new, **more: segmenter_kernels.linear_residual(
        new(5, 64), new(8, 64), new(8), new(5, 8), **more
    ),
    "mask_scores": lambda new, **more: segmenter_kernels.mask_scores(
        new(1, 9, 16), new(1, 3, 16), new(3), new(3), 1e-5, **more
    ),
    "merge_windows": lambda new, **more: segmenter_kernels.merge_windows(new(1, 3, 4, 4), (8, 8), 8, 8, **more),
    "normalize": lambda new, **more: segmenter_kernels.normalize(
        new(1, 4, 4, 3, dtype=torch.uint8), (0, 0, 0), (1, 1, 1), **more
    ),
    "patch_embed": lambda new, **more: segmenter_kernels.patch_embed(
        new(1, 3, 8, 8), new(16, 3, 8, 8), new(16), new(1, 2, 16), new(1, 1, 16), **more
    ),
    "quantize": lambda new, **more: segmenter_kernels.quantize(new(5, 64), **more),
    "resize": lambda new, **more: segmenter_kernels.resize(new(1, 4, 4, 3, dtype=torch.uint8), (8, 8), **more),
    "rotate": lambda new, **more: segmenter_kernels.rotate(new(1, 3, 48), new(3, 4), new(3, 4), 2, **more),
    "upsample_argmax": lambda new, **more: segmenter_kernels.upsample_argmax(new(1, 3, 4, 4), (8, 8), **more),
}


@pytest.mark.parametrize("name", segmenter_kernels.__all__)
def test_a_device_without_data_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"\w+: \w+ is on meta; Triton kernels need a .* tensor: move it there"):
        CALLS[name](meta)


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
    def ones(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.ones(shape, device=DEVICE).to(dtype)

    used: list[Any] = []

    def seen(op: str, given: Any, committed: Any, **more: Any) -> Any:
        used.append(committed)
        return chosen(op, given, committed, **more)

    chosen = tiles.chosen
    monkeypatch.setattr(tiles, "chosen", seen)
    CALLS[name](ones)
    with pytest.raises(ValueError, match=rf"^\w+: {message}"):
        CALLS[name](ones, tile=change(used[-1]))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        *(("BLOCK_M", size, "want a power of two") for size in (48, 0, -16, 16.0, True, "16")),
        *(("SPLIT", size, "want a power of two") for size in (0, 3)),
        *(("GROUP", size, "want a whole number, 1 or above") for size in (0, -1, 2.0)),
        *(("SMALL", size, "want 0 or 1") for size in (2, -1, True)),
        *(("maxnreg", size, "want a whole number, 0 for any") for size in (-1, 128.0, None)),
    ],
)
def test_sizes_of_a_tile_are_judged_by_their_names(name: str, wrong: Any, message: str) -> None:
    committed = {"BLOCK_M": 64, "SPLIT": 2, "GROUP": 3, "SMALL": 0, "maxnreg": 0}
    assert tiles.chosen("op", dict(committed), committed) == committed
    with pytest.raises(ValueError, match=f"op: tile {name} {wrong!r}: {message}"):
        tiles.chosen("op", committed | {name: wrong}, committed)


def test_every_committed_tile_may_be_given() -> None:
    flags = dict.fromkeys(("linear_int8", "linear_fp8"), quantized_linear.FLAGS)
    data = {sm: json.loads((tiles.FOLDER / f"sm_{sm}.json").read_text("utf-8")) for sm in tiles.ARCHITECTURES}
    given = 0
    for architecture, elsewhere in itertools.product(tiles.ARCHITECTURES, repeat=2):
        for op, cases in data[architecture].items():
            for case, tile in cases.items():
                # linear_fp8 is not on all of them
                if committed := data[elsewhere].get(op, {}).get(case):
                    assert tiles.chosen(op, tile, committed, flags.get(op, tiles.FLAGS)) is tile
                    given += 1
    assert given > 1000


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
