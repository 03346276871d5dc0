"""ADE20K's scene parsing benchmark, 150 classes: `{images,annotations}/{training,validation}/NAME.{jpg,png}`.

Annotations hold 1 to 150 for the classes and 0 for pixels of none, which are ignored.
Source: Zhou et al. 2017; names are the first of each class in the benchmark's list of 150 objects.
"""

from pathlib import Path

from segmenter.config import default_palette
from segmenter.datasets.pairs import Layout

EXPECTED = (
    "ADE20K is the folder ADEChallengeData2016 with images/training, images/validation,"
    " annotations/training and annotations/validation"
)
_NAMES = """\
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck,
tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land,
bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer,
plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank,
trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic
light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag"""
CLASSES = tuple(_NAMES.replace("\n", " ").split(", "))
_FOLDERS = {"train": "training", "val": "validation"}


def layout(root: Path, split: str) -> Layout:
    """The layout of `root` for a split, 'train' or 'val'."""
    folder = _FOLDERS[split]
    images, masks = root / "images" / folder, root / "annotations" / folder
    return Layout(images, masks, CLASSES, default_palette(len(CLASSES)), EXPECTED, first=1, void=(0,))
