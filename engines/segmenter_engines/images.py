"""Fitting dataset images to an engine's one size."""

import numpy as np
from PIL import Image


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 RGB [h, w, 3] resized bilinearly to `size` (H, W); the same array when it fits already."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
