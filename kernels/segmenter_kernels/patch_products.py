"""What `patch_embed` multiplies: patches, read from the image in place, by weights; a step takes rows in one colour.

Patches of floats [B, 3, H, W], or of pixels [B, H, W, 3]. Where the width is a multiple of 4, a thread reads two pixels
as two words, and just those that it holds in the product's operand: their bytes become numbers in its registers, a step
of each colour, and pass no shared memory on the way. Else they are read one by one.
"""

import triton
import triton.language as tl


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
    """Even and odd columns of one colour, in the order of `of_words`, as [patches, 8 octets].

    In the order that `WARPS` warps hold a product's operand in, so that nothing moves.
    """
    M: tl.constexpr = even.shape[0] // (4 * OCTETS)
    pairs = tl.reshape(tl.join(even, odd), [OCTETS, M // (16 * WARPS), 2, WARPS, 8, 4, 2])
    return tl.reshape(tl.permute(pairs, [1, 3, 2, 4, 0, 5, 6]), [M, 8 * OCTETS])


@triton.jit
def of_floats(
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
def of_bytes(
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
def of_words(
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
