"""Pictures and labels brought to one size."""

import numpy as np
from PIL import Image

from segmenter.datasets.sample import Sample, SegmentationDataset
from segmenter.images import resize_labels


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, C], RGB first, resized bilinearly to `size` (H, W); the same array when it fits already."""
    if image.shape[:2] == size:
        return image
    parts = (image[..., :3], *(image[..., [index]] for index in range(3, image.shape[2])))
    return np.concatenate([_resized(part[..., 0] if part.shape[2] == 1 else part, size) for part in parts], axis=2)


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = np.ascontiguousarray(picture)
    pixels = np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return pixels.reshape(*size, -1)


class Fitted:
    """A dataset with every sample resized to `size` (H, W): images bilinearly, labels as `resize_labels` does."""

    def __init__(self, samples: SegmentationDataset, size: tuple[int, int]) -> None:
        self.samples, self.size = samples, size
        self.classes, self.palette, self.ignore = samples.classes, samples.palette, samples.ignore
        self.channels = samples.channels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        if sample.image.shape[:2] == self.size:
            return sample
        return Sample(fit(sample.image, self.size), resize_labels(sample.labels, *self.size), sample.name, sample.file)
