"""Image to tokens in one launch: P x P patches projected, extra tokens put in front, position embeddings added.

    out[b, E + n] = sum over (c, i, j) of image[b, c, P y + i, P x + j] weight[:, c, i, j] + bias + position[E + n]
    out[b, e] = tokens[e] + position[e]                                          n = y w + x,  e < E

A matrix product whose left side is read from the image in place: a step takes some rows of the patches in one colour.
From uint8 pixels [B, H, W, 3] a step also normalises: `x * scale + shift` with both roundings, then the rounding to the
weights' type, then zeros beyond the image, as the eager steps do. Weights keep their order (c, i, j).
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from segmenter_kernels import checks, patch_products, tiles
from segmenter_kernels.blocks import halves
from segmenter_kernels.patch_tiles import SMALL, case_of, registers
from segmenter_kernels.specialisation import DEPLOYED, TYPE_NAMES, Specialisation
from segmenter_kernels.tiles import Tile

OP = "patch_embed"
PATCH_SIZES = (8, 14, 16, 32)
MAX_ELEMENTS = 2**31  # of one image, so that offsets in it fit int32
# patch size, bytes read at a time (0: floats), whether the sides are multiples of it
DEPLOYED_FORMS = (
    *((8, 0, True), (14, 0, True), (16, 0, True), (32, 0, True)),
    *((8, 4, True), (16, 4, True), (16, 4, False), (32, 4, True), (14, 1, False)),
)


@triton.jit
def _positions(first, start_c, position_ptr, M, grid, C, E, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Position embeddings of some channels of some patches."""
    m = first + tl.arange(0, BLOCK_M)
    col = start_c + tl.arange(0, BLOCK_C)
    place = (E + m % grid).to(tl.int64)[:, None] * C + col[None, :]
    return tl.load(position_ptr + place, (m < M)[:, None] & (col < C)[None, :], 0.0)


@triton.jit
def _finish(total, position, first, start_c, bias_ptr, out_ptr, M, grid, C, E):
    """Adds bias and positions to some channels of some patches, and stores them."""
    m = first + tl.arange(0, total.shape[0])
    col = start_c + tl.arange(0, total.shape[1])
    total += tl.load(bias_ptr + col, col < C, 0.0).to(tl.float32)[None, :]
    total += position.to(tl.float32)
    row = (m // grid).to(tl.int64) * (E + grid) + E + m % grid
    keep = (m < M)[:, None] & (col < C)[None, :]
    tl.store(out_ptr + row[:, None] * C + col[None, :], total.to(out_ptr.dtype.element_ty), keep)


@triton.jit
def _kernel(
    image_ptr, weight_ptr, bias_ptr, position_ptr, tokens_ptr, out_ptr, M, H, W, h, w, C, E,
    scale_0, scale_1, scale_2, shift_0, shift_1, shift_2,
    BYTES: tl.constexpr, EVEN: tl.constexpr, P: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    # a patch's row is padded to WIDE, a power of two, and its rows to whole steps
    MASKED: tl.constexpr = WIDE != P or P % ROWS != 0
    STEPS: tl.constexpr = (P + ROWS - 1) // ROWS
    blocks = tl.cdiv(C, BLOCK_C)
    first = tl.program_id(0) // blocks * BLOCK_M
    start_c = tl.program_id(0) % blocks * BLOCK_C
    col = start_c + tl.arange(0, BLOCK_C)
    grid = h * w
    m = first + tl.arange(0, BLOCK_M)
    # patches and channels past the end repeat the last: they need no mask, and what comes of them is dropped
    patch = tl.minimum(m, M - 1)
    b, n = patch // grid, patch % grid
    y = (n // w * P)[:, None]
    x = (n % w * P)[:, None]
    i = (tl.arange(0, ROWS * WIDE) // WIDE)[None, :]
    j = (tl.arange(0, ROWS * WIDE) % WIDE)[None, :]
    start = b.to(tl.int64)[:, None]
    each_ptr = weight_ptr + tl.minimum(col, C - 1)[:, None] * (3 * P * P) + i * P + j
    total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    if BYTES == 4:
        total = patch_products.of_words(
            image_ptr, each_ptr, total, first, M, H, W, h, w,
            scale_0, scale_1, scale_2, shift_0, shift_1, shift_2, EVEN, P, ROWS, STEPS, PRECISION, WARPS,
        )  # fmt: skip
    elif BYTES == 1:
        total = patch_products.of_bytes(
            image_ptr + start * (H * W * 3), each_ptr, total, y, x, i, j, H, W,
            scale_0, scale_1, scale_2, shift_0, shift_1, shift_2, P, ROWS, STEPS, MASKED, PRECISION,
        )  # fmt: skip
    else:
        total = patch_products.of_floats(
            image_ptr + start * (3 * (h * P) * (w * P)), each_ptr, total, y, x, i, j, h, w,
            P, ROWS, STEPS, MASKED, PRECISION,
        )  # fmt: skip

    # in quarters, for all at once would want more registers than the product; the next positions are on their way
    QUARTER: tl.constexpr = BLOCK_C // 4
    left, right = halves(total)
    quarters = halves(left) + halves(right)
    position = _positions(first, start_c, position_ptr, M, grid, C, E, BLOCK_M, QUARTER)
    for quarter in tl.static_range(4):
        here = start_c + quarter * QUARTER
        if quarter < 3:
            following = _positions(first, here + QUARTER, position_ptr, M, grid, C, E, BLOCK_M, QUARTER)
        _finish(quarters[quarter], position, first, here, bias_ptr, out_ptr, M, grid, C, E)
        position = following
    image_stride = tl.cast(E + grid, tl.int64) * C
    # the extra tokens of the images whose first patch is among these
    for image in range(tl.cdiv(first, grid), tl.cdiv(tl.minimum(first + BLOCK_M, M), grid)):
        for e in range(E):
            extra = tl.load(tokens_ptr + e * C + col, col < C, 0.0).to(tl.float32)
            extra += tl.load(position_ptr + e * C + col, col < C, 0.0).to(tl.float32)
            tl.store(out_ptr + image * image_stride + e * C + col, extra.to(out_ptr.dtype.element_ty), col < C)


def patch_embed(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    position: Tensor,
    tokens: Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Image to tokens; inference only. All tensors contiguous.

    Args:
        image: [B, 3, H, W] normalised, of the weights' dtype, H and W multiples of P; or uint8 [B, H, W, 3] of any size
            with `mean` and `std`, which is normalised and zero-padded to multiples of P.
        weight: [C, 3, P, P], fp16, bf16 or fp32; P 8, 14, 16 or 32.
        bias: [C]; position: [1, E + h w, C], already at this grid; tokens: [1, E, C]; all of the weights' dtype.
        mean, std: 3 numbers each, of pixels from 0 to 1: `(x / 255 - mean) / std`.
        tile: BLOCK_M patches by BLOCK_C channels a program, ROWS of a patch a step, num_warps, num_stages, maxnreg
            registers a thread at most, unless that is 0 or missing; None takes the committed one.

    Returns:
        [B, E + h w, C].

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above, mean and std are missing for uint8 or
            given for floats, or a gradient is needed.
    """
    checks.tensor(OP, image=image, weight=weight)
    checks.require(weight.dim() == 4, OP, f"weight {list(weight.shape)}: want [C, 3, P, P]")
    C, P = weight.shape[0], weight.shape[3]
    checks.shape(OP, "weight", weight, (-1, 3, P, P))
    checks.require(P in PATCH_SIZES, OP, f"weight {list(weight.shape)}: want patches of 8, 14, 16 or 32 pixels")
    checks.require(C > 0, OP, f"weight {list(weight.shape)}: want at least 1 channel")
    pixels = image.dtype == torch.uint8
    checks.shape(OP, "image", image, (-1, -1, -1, 3) if pixels else (-1, 3, -1, -1))
    B, H, W = (image.shape[0], *image.shape[1:3]) if pixels else (image.shape[0], *image.shape[2:])
    multiples = pixels or not (H % P or W % P)
    checks.require(multiples, OP, f"image {H}x{W}: want sides that are multiples of {P}; pad it with zeros")
    checks.require(min(H, W) > 0, OP, f"image {H}x{W}: want at least 1x1")
    checks.require(3 * H * W < MAX_ELEMENTS, OP, f"image {H}x{W}: too large; do it in windows")
    scale, shift = _affine(pixels, mean, std)
    h, w = triton.cdiv(H, P), triton.cdiv(W, P)
    checks.shape(OP, "tokens", tokens, (1, -1, C))
    E = tokens.shape[1]
    checks.shape(OP, "position", position, (1, E + h * w, C))
    checks.shape(OP, "bias", bias, (C,))
    parameters = {"weight": weight, "bias": bias, "position": position, "tokens": tokens}
    dtype = checks.same_dtype(OP, checks.FLOATS, **parameters, **({} if pixels else {"image": image}))
    checks.on_gpu(OP, image=image, **parameters)
    checks.contiguous(OP, image=image, **parameters)
    checks.inference_only(OP, image=image, **parameters)
    out = torch.empty(B, E + h * w, C, dtype=dtype, device=image.device)
    M = B * h * w
    tile = tiles.chosen(OP, tile, tiles.of_device(OP, case_of(P, dtype, pixels, M * C), image.device))
    even = not (H % P or W % P)
    # PyTorch views as words what lies at a whole word of its memory, which itself may begin at any byte
    aligned = image.data_ptr() % 4 == 0 and image.storage_offset() % 4 == 0
    words = pixels and aligned and W % 4 == 0 and P % 4 == 0 and P % tile["ROWS"] == 0
    if M:
        read = image.view(-1).view(torch.int32) if words else image
        _kernel[(triton.cdiv(M, tile["BLOCK_M"]) * triton.cdiv(C, tile["BLOCK_C"]),)](
            *(read, weight, bias, position, tokens, out, M, H, W, h, w, C, E, *scale, *shift),
            BYTES=4 if words else int(pixels),
            EVEN=even,
            P=P,
            WIDE=triton.next_power_of_2(P),
            ROWS=tile["ROWS"],
            BLOCK_M=tile["BLOCK_M"],
            BLOCK_C=tile["BLOCK_C"],
            PRECISION="ieee" if dtype == torch.float32 else "tf32",
            WARPS=min(tile["num_warps"], tile["BLOCK_M"] // 16),
            num_warps=tile["num_warps"],
            num_stages=tile["num_stages"],
            maxnreg=registers(tile, even),
        )
    return out


def _affine(
    pixels: bool, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """Normalisation as `x * scale + shift`, which the launch rounds to float32 once."""
    if not pixels:
        checks.require(mean is None and std is None, OP, "mean and std are for uint8 images; this one is normalised")
        return (1.0,) * 3, (0.0,) * 3
    means, deviations = checks.colours(OP, mean, std)
    return [1 / (255 * s) for s in deviations], [-m / s for m, s in zip(means, deviations, strict=True)]


def specialisations(architecture: int) -> Iterator[Specialisation]:
    """The forms engines launch on an architecture: floats, pixels by words, any pixels by bytes."""
    pointers = ("weight_ptr", "bias_ptr", "position_ptr", "tokens_ptr", "out_ptr")
    integers = ("M", "H", "W", "h", "w", "C", "E")
    factors = ("scale_0", "scale_1", "scale_2", "shift_0", "shift_1", "shift_2")
    for dtype in DEPLOYED:
        for P, BYTES, EVEN in DEPLOYED_FORMS:
            tile = tiles.of_architecture(OP, case_of(P, dtype, BYTES > 0, SMALL), architecture)
            read, name = {0: (f"*{TYPE_NAMES[dtype]}", ""), 1: ("*u8", "_uint8_any"), 4: ("*i32", "_uint8")}[BYTES]
            name += "_uneven" if BYTES == 4 and not EVEN else ""
            yield Specialisation(
                name=f"{OP}_{TYPE_NAMES[dtype]}_p{P}{name}",
                kernel=_kernel,
                types={
                    **{"image_ptr": read},
                    **dict.fromkeys(pointers, f"*{TYPE_NAMES[dtype]}"),
                    **dict.fromkeys(integers, "i32"),
                    **dict.fromkeys(factors, "fp32"),
                },
                constants={
                    **{"BYTES": BYTES, "EVEN": EVEN, "P": P, "WIDE": triton.next_power_of_2(P)},
                    **{name: tile[name] for name in ("ROWS", "BLOCK_M", "BLOCK_C")},
                    **{"PRECISION": "tf32", "WARPS": min(tile["num_warps"], tile["BLOCK_M"] // 16)},
                },
                aligned=frozenset(("image_ptr", *pointers, "C")),
                num_warps=tile["num_warps"],
                num_stages=tile["num_stages"],
                maxnreg=registers(tile, EVEN),
                matrix=True,
                asynchronous=BYTES == 0,
            )
