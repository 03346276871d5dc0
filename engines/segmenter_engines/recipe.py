"""How a graph is quantised, and a graph made ready for it: smoothed, the steps of its activations known.

From one such graph versions are written with any of its layers in 8 bits: all of them, one alone to see what it costs,
or all but a few.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import cast

import numpy as np
import onnx

from segmenter.datasets import SegmentationDataset
from segmenter.datasets.fitted import fit
from segmenter.datasets.sample import spread
from segmenter.errors import EngineError
from segmenter.preprocess import normalize
from segmenter_engines.calibrate import METHODS, Method, channel_peaks, ranges
from segmenter_engines.formats import REAL, Precision, Target, activation_format, weight_format
from segmenter_engines.heads import split_by_heads
from segmenter_engines.manifest import PIXELS, Manifest, read_manifest, read_quantised
from segmenter_engines.qdq import Linear, activations_of, insert_qdq, linears, names, quantised_layers
from segmenter_engines.smooth import norm_fed, smooth
from segmenter_engines.steps import Steps, steps_over

SMOOTHING = 0.5  # exact in floating point; on a fine-tuned ViT-S it halved the mIoU int8 lost, and more


@dataclass(frozen=True)
class Recipe:
    """How a graph is quantised."""

    precision: Precision = "int8"
    """int8, or fp8 (E4M3) for TensorRT."""
    target: Target | None = None
    """cpu: ONNX Runtime and OpenVINO, of an fp32 graph. tensorrt: TensorRT and TensorRT-RTX, of an fp16 or bf16 one.
    Left out, the one that takes the graph's precision."""
    method: Method = "minmax"
    """How ranges of activations are found: all that was seen (minmax), or their tails cut by one of the others.
    percentile cuts at --percentile, entropy where the distribution changes least, mse where the error is least."""
    percentile: float = 99.99
    """Where --method percentile cuts the tails, in per cent of all values."""
    smoothing: float = SMOOTHING
    """How much of the outlier channels' range moves into the weights, 0 to 1."""
    exclude: tuple[str, ...] = ()
    """Linear layers whose weight's name has one of these parts stay in floating point: fc2, decoder, blocks.0."""

    def __post_init__(self) -> None:
        if self.precision not in ("int8", "fp8"):
            raise EngineError(f"precision {self.precision!r}: quantize knows int8 and fp8; export makes the others")
        if self.target not in (None, "cpu", "tensorrt"):
            raise EngineError(f"target {self.target!r}: wanted cpu or tensorrt")
        if self.method not in METHODS:
            raise EngineError(f"method {self.method!r}: wanted one of {', '.join(METHODS)}")
        if not 0.0 <= self.smoothing <= 1.0:
            raise EngineError(f"smoothing {self.smoothing}: wanted 0 (none) to 1")
        if not 50.0 < self.percentile <= 100.0:
            raise EngineError(
                f"percentile {self.percentile}: wanted above 50 and at most 100, typically 99.9 to 99.999"
            )


@dataclass(frozen=True)
class Calibrated:
    """A smoothed graph in floating point, and what its Q/DQ versions need."""

    source: Path
    base: Manifest
    recipe: Recipe
    target: Target
    model: onnx.ModelProto
    layers: tuple[str, ...]  # weights of the layers that can be quantised, in graph order
    steps: dict[str, Steps] = field(repr=False)  # of their activations
    images: int

    def quantised(self, keep: Collection[str] = ()) -> onnx.ModelProto:
        """The graph with all its `layers` in 8 bits but those in `keep`; with none left, as it is."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        chosen = [layer for layer in linears(model.graph) if layer.weight in self.layers and layer.weight not in keep]
        if chosen:
            insert_qdq(model.graph, chosen, self.steps, weight_format(self.recipe.precision))
        return model


def calibrated(source: Path, images: Iterable[np.ndarray], recipe: Recipe, threads: int | None = None) -> Calibrated:
    """Smooth an exported graph and find its activations' ranges on images, uint8 RGB [H, W, 3] of its size.

    Raises EngineError for a graph that does not fit the recipe or has no manifest, a word of `exclude` that no layer
    has, or without images.
    """
    base, target = _fitting(source, recipe)
    model = onnx.load(source)
    split_by_heads(model.graph)
    chosen = _chosen(source, model.graph, recipe.exclude)
    pictures = list(images)
    if not pictures:
        raise EngineError("no calibration images; pass at least one, typically 16 to 64")

    def batches() -> Iterator[np.ndarray]:  # floats of one image at a time: they take four times the memory
        return (graph_input(picture, base) for picture in pictures)

    fed = norm_fed(model.graph, [layer.weight for layer in chosen]) if recipe.smoothing else {}
    if fed:
        smooth(model.graph, fed, channel_peaks(model, list(fed), batches(), threads), recipe.smoothing)
    form, real = activation_format(recipe.precision, target), REAL[base.precision]
    spans = ranges(
        model,
        activations_of(chosen),
        batches(),
        recipe.method,
        percentile=recipe.percentile,
        form=form,
        real=real,
        threads=threads,
    )
    weights = tuple(dict.fromkeys(layer.weight for layer in chosen))
    steps = {name: steps_over(span, form, real) for name, span in spans.items()}
    return Calibrated(source, base, recipe, target, model, weights, steps, len(pictures))


def calibrated_like(source: Path, other: Path) -> Calibrated:
    """An exported graph with the activation scales of a quantised one of the same network, as fine-tuning leaves it.

    The layers that one keeps in floating point stay so. Nothing is smoothed: `segmenter qat` has done so.
    Raises EngineError when `other` is no quantised graph, is for another target, or has other layers.
    """
    made = read_quantised(other)
    recipe = Recipe(cast(Precision, made.precision), made.details.get("target"), smoothing=0.0)
    base, target = _fitting(source, recipe)
    model = onnx.load(source)
    split_by_heads(model.graph)
    found, known = quantised_layers(onnx.load(other).graph), {layer.weight: layer for layer in linears(model.graph)}
    if strange := sorted(set(found) - set(known)):
        raise EngineError(f"{other}: quantises {strange[0]}, which {source} has not; pass a graph of the same network")
    steps = {known[weight].activation: layer.steps for weight, layer in found.items()}
    return Calibrated(source, base, recipe, target, model, tuple(found), steps, 0)


def require_nothing_asked(recipe: Recipe) -> None:
    """Raises EngineError, naming it, for a choice that a quantised graph whose scales are taken has made already."""
    for one in fields(recipe):
        if getattr(recipe, one.name) != one.default:
            raise EngineError(
                f"--{one.name} beside --scales-of: that graph has settled it; leave it out, or calibrate anew"
            )


def _fitting(source: Path, recipe: Recipe) -> tuple[Manifest, Target]:
    """The manifest of a graph, and the target its precision is for.

    Raises EngineError when that is not the recipe's, or nothing can be quantised.
    """
    base = read_manifest(source)
    target: Target = "cpu" if base.precision == "fp32" else "tensorrt"
    if base.kind != "onnx" or base.precision not in ("fp32", "fp16", "bf16"):
        raise EngineError(f"{source}: is {base.precision} {base.kind}; export the checkpoint and quantise that")
    if recipe.target not in (None, target):
        raise EngineError(
            f"{source}: is {base.precision}, and asked for target {recipe.target}; export it with --precision"
            f" {'fp32' if recipe.target == 'cpu' else 'fp16'} first"
        )
    if recipe.precision == "fp8" and target == "cpu":
        raise EngineError(f"{source}: an fp32 graph, while fp8 is for TensorRT; export it with --precision fp16 first")
    if base.plugins:
        raise EngineError(f"{source}: holds {base.plugins[0]} nodes; quantise an export with --lowering native")
    return base, target


def _chosen(source: Path, graph: onnx.GraphProto, exclude: Sequence[str]) -> list[Linear]:
    everything = [layer.weight for layer in linears(graph)]
    for word in exclude:
        if not any(names(word, weight) for weight in everything):
            parts = sorted({part for weight in everything for part in weight.split(".") if not part.isdigit()})
            raise EngineError(
                f"--exclude {word}: no quantised layer of {source} has such a part in its name; the parts are"
                f" {', '.join(parts)}, and numbers as in {everything[0] if everything else 'blocks.0'}"
            )
    chosen = linears(graph, exclude)
    if not chosen:
        raise EngineError(f"{source}: no linear layer left to quantise; check --exclude {' '.join(exclude)}")
    return chosen


def graph_input(image: np.ndarray, base: Manifest) -> np.ndarray:
    """What a graph takes for one image, uint8 RGB [H, W, 3]: a batch of it, normalised where the graph does not.

    The batch is one, or the fewest the graph takes, all the same image.
    Raises EngineError for an image of another size than the graph is for.
    """
    if image.shape[:2] != base.size:
        raise EngineError(
            f"calibration image {image.shape[0]}x{image.shape[1]}: the graph takes {base.size[0]}x{base.size[1]};"
            " resize it"
        )
    one = image[None] if base.input == PIXELS else normalize(image, base.preprocess).numpy()
    return one.repeat(base.batch[0], axis=0)


def calibration_images(
    dataset: SegmentationDataset, count: int, size: tuple[int, int], seed: int | None = None
) -> Iterable[np.ndarray]:
    """The images of a dataset at `calibration_places`, uint8 [H, W, 3], resized to `size` where they differ."""
    return (fit(dataset[place].image, size) for place in calibration_places(len(dataset), count, seed))


def calibration_places(length: int, count: int, seed: int | None = None) -> list[int]:
    """Which `count` of the `length` images of a dataset calibrate.

    seed: of the random choice among them; None spreads them evenly over the dataset.
    """
    if count < 1:
        raise EngineError(f"{count} calibration images: wanted at least 1, typically 16 to 64")
    if seed is None:
        return spread(length, count)
    if seed < 0:
        raise EngineError(f"seed {seed}: wanted 0 or more, or none to spread the images evenly")
    return sorted(np.random.default_rng(seed).permutation(length)[:count].tolist())
