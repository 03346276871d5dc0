"""What Segmenter asks of ops that read or write images."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segmenter_kernels import reference
from segmenter_kernels.merge_windows import case_of as merge_case
from segmenter_kernels.normalize import TILE as NORMALIZE_TILE
from segmenter_kernels.patch_tiles import case_of as patch_embed_case
from segmenter_kernels.resize import TILE as RESIZE_TILE
from segmenter_kernels.upsample_argmax import case_of as upsample_case
from segmenter_kernels.workload import Normal, Workload

PATCH, CLASSES = 16, 150
MEAN = STD = (0.5, 0.5, 0.5)
FRAME = (720, 1280)  # as a camera's decoder leaves it on the GPU


def _pixels(normal: Normal, B: int, H: int, W: int) -> Tensor:
    """uint8 [B, H, W, 3]."""
    return (normal(B, 3, H, W) * 64 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def patch_embed(B: int, side: int, C: int, dtype: torch.dtype, pixels: bool = True) -> Workload:
    n, values = (side // PATCH) ** 2, 3 * PATCH * PATCH

    def draw(normal: Normal) -> tuple[Any, ...]:
        image = _pixels(normal, B, side, side) if pixels else normal(B, 3, side, side)
        weight = normal(C, 3, PATCH, PATCH, scale=values**-0.5)
        return image, weight, normal(C), normal(1, 1 + n, C), normal(1, 1, C)

    return Workload(
        op="patch_embed",
        batch=B,
        shape=f"{B} x {side} x {side}{' pixels' if pixels else ''} to {C}",
        dtype=dtype,
        draw=draw,
        flops=2 * B * n * C * values,
        traffic_bytes=B * n * values * (1 if pixels else dtype.itemsize)
        + (C * values + (B + 1) * (1 + n) * C) * dtype.itemsize,
        key="patch_embed",
        case=patch_embed_case(PATCH, dtype, pixels, B * n * C),
        named={"mean": MEAN, "std": STD} if pixels else {},
        plain_op=_plain_patch_embed if pixels else None,
    )


def _plain_patch_embed(image: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
    normalised = (image.permute(0, 3, 1, 2).float() * (1 / (255 * STD[0])) - MEAN[0] / STD[0]).to(weight.dtype)
    return reference.patch_embed(normalised, weight, *rest)


def resize(B: int, side: int, frame: tuple[int, int] = FRAME) -> Workload:
    """Frames to what the network takes."""
    H, W = frame
    return Workload(
        op="resize",
        batch=B,
        shape=f"{B} x {H} x {W} to {side} x {side}",
        dtype=torch.float32,
        draw=lambda normal: (_pixels(normal, B, H, W), (side, side)),
        # rows first: a pixel that a pass reads makes two, with a product and a sum each
        flops=4 * B * 3 * H * (W + side),
        traffic_bytes=B * 3 * (H * W + side * side),
        key="",
        case="",
        plain_op=_plain_resize,
        only=RESIZE_TILE,
    )


def _plain_resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    planes = images.permute(0, 3, 1, 2)
    if images.dtype == torch.uint8:
        planes = planes.float()
    resized = F.interpolate(planes, size=size, mode="bilinear", antialias=True).permute(0, 2, 3, 1).contiguous()
    return resized.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else resized


def normalize(B: int, side: int) -> Workload:
    return Workload(
        op="normalize",
        batch=B,
        shape=f"{B} x {side} x {side} pixels",
        dtype=torch.float32,
        draw=lambda normal: (_pixels(normal, B, side, side), MEAN, STD),
        flops=2 * B * 3 * side * side,
        traffic_bytes=B * 3 * side * side * (1 + torch.float32.itemsize),
        key="",
        case="",
        plain_op=_plain_normalize,
        only=NORMALIZE_TILE,
    )


def _plain_normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    planes = images.permute(0, 3, 1, 2).to(torch.promote_types(images.dtype, torch.float32))
    return (planes * (1 / (255 * std[0])) - mean[0] / std[0]).contiguous()


def upsample_argmax(B: int, side: int, dtype: torch.dtype) -> Workload:
    h = side // PATCH
    return Workload(
        op="upsample_argmax",
        batch=B,
        shape=f"{B} x {CLASSES} x {h} x {h} to {side} x {side}",
        dtype=dtype,
        # the decoder leaves the classes last
        draw=lambda normal: (normal(B, h, h, CLASSES).permute(0, 3, 1, 2), (side, side)),
        flops=7 * B * CLASSES * side * side,
        traffic_bytes=B * (CLASSES * h * h * dtype.itemsize + side * side),
        key="upsample_argmax",
        case=upsample_case(PATCH),
    )


def merge_windows(picture: tuple[int, int], window: int, stride: int, dtype: torch.dtype) -> Workload:
    (H, W), h = picture, window // PATCH
    rows, columns = (-(-(length - window) // stride) + 1 for length in picture)
    n = rows * columns
    return Workload(
        op="merge_windows",
        batch=1,
        shape=f"{n} x {CLASSES} x {h} x {h} of {window} every {stride} to {H} x {W}",
        dtype=dtype,
        draw=lambda normal: (normal(n, h, h, CLASSES).permute(0, 3, 1, 2), picture, window, stride),
        flops=8 * n * CLASSES * window * window,
        traffic_bytes=n * CLASSES * h * h * dtype.itemsize + H * W,
        key="merge_windows",
        case=merge_case(CLASSES),
    )
