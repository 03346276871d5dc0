"""Labels one picture without PyTorch: python label_image.py ENGINE PICTURE LABELS.png (numpy, Pillow, openvino)."""

import sys

import numpy as np
from PIL import Image

import segmenter_trt


def label(engine_path: str, picture_path: str, out_path: str) -> None:
    engine = segmenter_trt.Engine(engine_path)
    session = segmenter_trt.Session(engine)
    facts = engine.manifest

    try:
        picture = np.asarray(Image.open(picture_path).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # as Pillow tells of a damaged one
        sys.exit(f"error: {picture_path}: cannot be read ({error}); name a whole picture")
    (_, height, _), (_, width, _) = facts["height"], facts["width"]
    labels = session.run(segmenter_trt.resize(picture, height, width))

    # of more than 256 classes: 16-bit grey, for a palette has no more colours
    wide = labels.dtype == np.int16
    drawn = Image.fromarray(labels.astype(np.uint16) if wide else labels)
    drawn = drawn.resize(picture.shape[1::-1], Image.Resampling.NEAREST)
    if not wide:
        drawn.putpalette(bytes(value for colour in facts["palette"] for value in colour))
    drawn.save(out_path)
    for index, count in enumerate(np.bincount(labels.ravel(), minlength=len(facts["classes"]))):
        print(f"{count / labels.size:6.1%} {facts['classes'][index]}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: label_image.py ENGINE PICTURE LABELS.png")
    try:
        label(*sys.argv[1:])
    except (segmenter_trt.Error, OSError) as error:
        sys.exit(f"error: {error}")
