"""Patch kernels for another patch size: [C, 3, P, P] -> [C, 3, P', P']."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PatchResize = Literal["pi", "bilinear"]


def resize_patches(kernel: Tensor, size: int, method: PatchResize = "pi") -> Tensor:
    """A patch projection's kernel for patches of `size` pixels a side, in float32.

    pi: the kernel whose products with resized patches are nearest to the old one's with the patches as they were, and
    equal to them where patches grow; bilinear: the kernel resized as if it were an image. Patches are taken to be
    resized bilinearly, with antialiasing where they shrink.
    Source: Beyer et al. 2023 (FlexiViT), section 3.4 and appendix A.
    """
    weights = kernel.double()
    if method == "bilinear":
        return F.interpolate(weights, size=(size, size), mode="bilinear", align_corners=False).float()
    # the resize of a patch is the same along both sides, and so is its pseudoinverse
    side = torch.linalg.pinv(_resize_matrix(kernel.shape[-1], size).t())  # [P', P]
    return torch.einsum("ih,jw,cdhw->cdij", side, side, weights).float()


def _resize_matrix(old: int, new: int) -> Tensor:
    """Float64 [new, old] that resizes a row of `old` pixels."""
    rows = torch.eye(old, dtype=torch.float64).reshape(1, old, 1, old)
    resized = F.interpolate(rows, size=(1, new), mode="bilinear", align_corners=False, antialias=True)
    return resized.reshape(old, new).t()
