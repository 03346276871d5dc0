"""LayerNorm to 8 bits in one pass, after a residual add or none: `quantize(layernorm(x + r))`, a scale a row.

The kernel is that of `add_layernorm`: y is rounded to the type of x and then quantised as it would be read back, by
the code of `quantize`, and never written in 16 bits.
"""

import torch
from torch import Tensor

from segmenter_kernels import checks
from segmenter_kernels.add_layernorm import check, run
from segmenter_kernels.quantize import LARGEST, float8_supported
from segmenter_kernels.tiles import Tile

OP = "layernorm_quantize"


def layernorm_quantize(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    r: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.int8,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm of rows in 8 bits, for inference: `LayerNorm(x + r)` is about `q * scale`.

    Args:
        x: [..., C], contiguous, fp16, bf16 or fp32.
        weight, bias: [C], of the same dtype.
        eps: added to the variance, a float, 0 or above.
        r: like x, added to it first.
        dtype: torch.int8, or torch.float8_e4m3fn on GPUs of compute capability 8.9 or newer.
        tile: as `add_layernorm` takes it.

    Returns:
        `x + r` like x (x itself without r), q like x in `dtype`, and scale [...] in float32.

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above, C > add_layernorm.MAX_C, eps is below 0
            or not finite, or a gradient is needed.
    """
    check(OP, x, r, weight, bias, eps)
    checks.require(dtype in LARGEST, OP, f"dtype {dtype}: want torch.int8 or torch.float8_e4m3fn")
    checks.inference_only(OP, x=x, weight=weight, bias=bias, **({} if r is None else {"r": r}))
    if dtype == torch.float8_e4m3fn:
        float8_supported(OP, x.device)
    z, q, scale = run(x, r, weight, bias, eps, tile, dtype)
    assert scale is not None
    return z, q, scale
