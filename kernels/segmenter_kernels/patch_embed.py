"""Image to tokens in one launch: P x P patches projected, extra tokens put in front, position embeddings added.

    out[b, E + n] = sum over (c, i, j) of image[b, c, P y + i, P x + j] weight[:, c, i, j] + bias + position[E + n]
    out[b, e] = tokens[e] + position[e]                                          n = y w + x,  e < E

A matrix product whose left side is read from the image in place: a step takes some rows of the patches in one colour.
From uint8 pixels [B, H, W, 3] a step also normalises: `x * scale + shift` with both roundings, then the rounding to the
weights' type, then zeros beyond the image, as the eager steps do. Weights keep their order (c, i, j). Where the width
is a multiple of 4, a thread reads two pixels as two words, and just those that it holds in the product's operand: their
bytes become numbers in its registers, a step of each colour, and pass no shared memory on the way. Else they are read
one by one.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from segmenter_kernels import checks, tiles
from segmenter_kernels.specialisation import DEPLOYED, TYPE_NAMES, Specialisation
from segmenter_kernels.tiles import Tile

OP = "patch_embed"
PATCH_SIZES = (8, 14, 16, 32)
SMALL = 2**21  # outputs with fewer elements leave multiprocessors idle unless tiles are small
MAX_ELEMENTS = 2**31  # of one image, so that offsets in it fit int32
# patch size, bytes read at a time (0: floats), whether the sides are multiples of it
DEPLOYED_FORMS = (
    *((8, 0, True), (14, 0, True), (16, 0, True), (32, 0, True)),
    *((8, 4, True), (16, 4, True), (16, 4, False), (32, 4, True), (14, 1, False)),
)


@triton.jit
def _load(x_ptr, keep, MASKED: tl.constexpr):
    return tl.load(x_ptr, keep, 0) if MASKED else tl.load(x_ptr)


@triton.jit
def _normalised(value, keep, scale, shift, BYTE: tl.constexpr, EVEN: tl.constexpr, DTYPE: tl.constexpr):
    """Byte 0 to 3 of int32 values as the network reads it; zero where `keep` is not, unless all is kept (EVEN)."""
    # 2^23 + byte, or 2^23 + 256 byte, exactly: a conversion would take several times as long. The second axis of the
    # grid is 1 long, which compilers do not know: one instruction then takes a mask and these bits, not two constants
    bits = 0x4B000000 + tl.program_id(1)
    if BYTE == 1:
        x, scale = (value & 0xFF00) | bits, scale / 256
    else:
        x = ((value >> 8 * BYTE) & 0xFF) | bits
    # the fma is exactly byte * scale, rounded once, and no compiler fuses it with the sum: eager rounds both
    x = tl.fma(x.to(tl.float32, bitcast=True), scale, scale * -8388608.0) + shift
    return (x if EVEN else tl.where(keep, x, 0.0)).to(DTYPE)


@triton.jit
def _operand(even, odd, WARPS: tl.constexpr, OCTETS: tl.constexpr):
    """Even and odd columns of one colour, in the order of `_product_of_words`, as [patches, 8 octets].

    In the order that `WARPS` warps hold a product's operand in, so that nothing moves.
    """
    M: tl.constexpr = even.shape[0] // (4 * OCTETS)
    pairs = tl.reshape(tl.join(even, odd), [OCTETS, M // (16 * WARPS), 2, WARPS, 8, 4, 2])
    return tl.reshape(tl.permute(pairs, [1, 3, 2, 4, 0, 5, 6]), [M, 8 * OCTETS])


@triton.jit
def _product_of_floats(
    image_ptr, weight_ptr, total, y, x, i, j, h, w,
    P: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # the compiler sees what w P is a multiple of, which it would not of W
    image_ptr += (y + i) * (w * P) + x + j
    for step in range(3 * STEPS):
        c, row = step // STEPS, step % STEPS * ROWS
        inside = (row + i < P) & (j < P)
        left = _load(image_ptr + (c * (h * P) + row) * (w * P), inside, MASKED)
        right = _load(weight_ptr + (c * P + row) * P, inside, MASKED)
        total = tl.dot(left, right.T, total, input_precision=PRECISION)
    return total


@triton.jit
def _product_of_bytes(
    image_ptr, weight_ptr, total, y, x, i, j, H, W, scale_0, scale_1, scale_2, shift_0, shift_1, shift_2,
    P: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    image_ptr += ((y + i) * W + x + j) * 3
    for step in range(3 * STEPS):
        # the three colours of a row in turn, for they share cache lines
        c, row = step % 3, step // 3 * ROWS
        inside = (row + i < P) & (j < P)
        keep = inside & (x + j < W) & (y + row + i < H)
        scale = tl.where(c == 0, scale_0, tl.where(c == 1, scale_1, scale_2))
        shift = tl.where(c == 0, shift_0, tl.where(c == 1, shift_1, shift_2))
        pixel = tl.load(image_ptr + (row * W * 3 + c), keep, 0).to(tl.int32)
        right = _load(weight_ptr + (c * P + row) * P, inside, MASKED)
        left = _normalised(pixel, keep, scale, shift, 0, False, right.dtype)
        total = tl.dot(left, right.T, total, input_precision=PRECISION)
    return total


@triton.jit
def _product_of_words(
    image_ptr, weight_ptr, total, first, M, H, W, h, w, scale_0, scale_1, scale_2, shift_0, shift_1, shift_2,
    EVEN: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, PRECISION: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """Two pixels lie in two words: all three colours of some rows at once."""
    BLOCK_M: tl.constexpr = total.shape[0]
    OCTETS: tl.constexpr = ROWS * P // 8
    # one axis, in the order in which the product's threads hold pairs: 4 of an octet, 8 patches, warps, then registers
    at = tl.arange(0, 4 * OCTETS * BLOCK_M)
    pair, octet = at % 4, at // (4 * BLOCK_M)
    m = at // 4 % BLOCK_M
    m = m // (16 * WARPS) * (16 * WARPS) + m // 8 % WARPS * 16 + m // (8 * WARPS) % 2 * 8 + m % 8
    patch = tl.minimum(first + m, M - 1)
    n = patch % (h * w)
    y, x = n // w * P, n % w * P
    i, j = octet // (P // 8), octet % (P // 8) * 8
    start = first // (h * w)
    image_ptr += start.to(tl.int64) * H * (W // 4 * 3)
    # pairs start at the bytes 0, 6, 12 and 18 of an octet's 24, every other one inside a word
    image_ptr += ((patch // (h * w) - start) * H + y) * (W // 4 * 3) + x // 4 * 3 + pair * 3 // 2
    # apart, so that octets of a row share an address
    image_ptr += i * (W // 4 * 3)
    image_ptr += j // 4 * 3
    y, x = y + i, x + j + pair * 2
    bits = (pair % 2 * 16).to(tl.int64)
    DTYPE: tl.constexpr = weight_ptr.dtype.element_ty
    for step in range(STEPS):
        row = step * ROWS
        keep = (x < W) & (y + row < H)
        here = image_ptr + row * (W // 4 * 3)
        lower, upper = _load(here, keep, not EVEN), _load(here + 1, keep, not EVEN)
        six = (upper.to(tl.int64) << 32 | lower.to(tl.uint32, bitcast=True).to(tl.int64)) >> bits
        u, v = six.to(tl.int32), (six >> 32).to(tl.int32)
        there = weight_ptr + row * P
        even = _normalised(u, keep, scale_0, shift_0, 0, EVEN, DTYPE)
        odd = _normalised(u, keep, scale_0, shift_0, 3, EVEN, DTYPE)
        total = tl.dot(_operand(even, odd, WARPS, OCTETS), tl.load(there).T, total, input_precision=PRECISION)
        even = _normalised(u, keep, scale_1, shift_1, 1, EVEN, DTYPE)
        odd = _normalised(v, keep, scale_1, shift_1, 0, EVEN, DTYPE)
        right = tl.load(there + P * P).T
        total = tl.dot(_operand(even, odd, WARPS, OCTETS), right, total, input_precision=PRECISION)
        even = _normalised(u, keep, scale_2, shift_2, 2, EVEN, DTYPE)
        odd = _normalised(v, keep, scale_2, shift_2, 1, EVEN, DTYPE)
        right = tl.load(there + 2 * P * P).T
        total = tl.dot(_operand(even, odd, WARPS, OCTETS), right, total, input_precision=PRECISION)
    return total


@triton.jit
def _halves(x):
    """A block's left and right half."""
    return tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), [0, 2, 1]))


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
        total = _product_of_words(
            image_ptr, each_ptr, total, first, M, H, W, h, w,
            scale_0, scale_1, scale_2, shift_0, shift_1, shift_2, EVEN, P, ROWS, STEPS, PRECISION, WARPS,
        )  # fmt: skip
    elif BYTES == 1:
        total = _product_of_bytes(
            image_ptr + start * (H * W * 3), each_ptr, total, y, x, i, j, H, W,
            scale_0, scale_1, scale_2, shift_0, shift_1, shift_2, P, ROWS, STEPS, MASKED, PRECISION,
        )  # fmt: skip
    else:
        total = _product_of_floats(
            image_ptr + start * (3 * (h * P) * (w * P)), each_ptr, total, y, x, i, j, h, w,
            P, ROWS, STEPS, MASKED, PRECISION,
        )  # fmt: skip

    # in quarters, for all at once would want more registers than the product; the next positions are on their way
    QUARTER: tl.constexpr = BLOCK_C // 4
    left, right = _halves(total)
    quarters = _halves(left) + _halves(right)
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
    tile = tile or tiles.of_device(OP, case_of(P, dtype, pixels, M * C), image.device)
    even = not (H % P or W % P)
    words = pixels and W % 4 == 0 and P % 4 == 0 and P % tile["ROWS"] == 0 and image.data_ptr() % 4 == 0
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
            maxnreg=_registers(tile, even),
        )
    return out


def _affine(
    pixels: bool, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """Normalisation as `x * scale + shift`, which the launch rounds to float32 once."""
    if not pixels:
        checks.require(mean is None and std is None, OP, "mean and std are for uint8 images; this one is normalised")
        return (1.0,) * 3, (0.0,) * 3
    if mean is None or std is None or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"{OP}: mean {mean}, std {std}: a uint8 image needs 3 numbers each, every std above 0")
    return [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]


def _registers(tile: Tile, even: bool) -> int | None:
    """Registers a thread may have. The masks of images that end inside a patch want some more than tiles say."""
    return tile.get("maxnreg") or None if even else None


def case_of(P: int, dtype: torch.dtype, pixels: bool, outputs: int) -> str:
    """The name in the tile data: the patch size, what is read, and whether the output has few elements."""
    size = "small" if outputs < SMALL else "large"
    return f"{P}_fp32" if dtype == torch.float32 else f"{P}_uint8_{size}" if pixels else f"{P}_{size}"


def shared_bytes(tile: Tile, P: int, itemsize: int, pixels: bool) -> int:
    """Shared memory of a program at most: a stage holds a block of patches and one (or three) of weights."""
    step = tile["ROWS"] * triton.next_power_of_2(P)
    patches, weights = tile["BLOCK_M"] * step * itemsize, tile["BLOCK_C"] * step * itemsize
    if pixels:
        # of each two pixels' six bytes two words are kept, of all colours
        return tile["num_stages"] * (tile["BLOCK_M"] * step * 4 + 3 * weights) + patches
    return tile["num_stages"] * (patches + weights)


def candidates(architecture: int, case: str) -> Iterator[Tile]:
    """Tiles worth timing: those that fit the architecture's shared memory."""
    P, itemsize, pixels = int(case.split("_")[0]), 4 if case.endswith("fp32") else 2, "uint8" in case
    small = ((64, 64, 4, 0), (64, 128, 4, 0), (128, 64, 4, 0), (128, 128, 8, 128))
    large = ((128, 128, 8, 128), (128, 256, 8, 0), (256, 128, 8, 0), (128, 64, 4, 0))
    shapes = large if case.endswith("large") else small
    # a stage of pixels holds all colours
    depths = ((32, 3), (16, 4), (64, 3)) if pixels else ((64, 3), (64, 4), (32, 4))
    for (BLOCK_M, BLOCK_C, num_warps, maxnreg), (step, num_stages) in itertools.product(shapes, depths):
        sizes = {"BLOCK_M": BLOCK_M, "BLOCK_C": BLOCK_C, "ROWS": min(P, max(1, step // triton.next_power_of_2(P)))}
        tile = sizes | {"num_warps": num_warps, "num_stages": num_stages}
        # so that two programs share a multiprocessor
        tile |= {"maxnreg": maxnreg} if architecture == 90 else {}
        if shared_bytes(tile, P, itemsize, pixels) <= tiles.SHARED_MEMORY_BYTES[architecture]:
            yield tile


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
                maxnreg=_registers(tile, EVEN),
                matrix=True,
                asynchronous=BYTES == 0,
            )
