"""What each layer of a plan does, in which precision, and why those exist that only move or convert data.

Read off names that RTX 1.7.1 gives its generated kernels (`__myl_CastMulFc_...`: the steps in order), the kinds both
runtimes give the rest, and which layer reads which. `REASONS` is the fixed table: what no row explains has no reason,
and a test fails on it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

# steps of generated kernels that move data, and those that convert it
MOVES = {"Move", "Resh", "Tran", "Slic", "Conc", "Repl", "Gath", "Copy", "Expa"}
CASTS = {"Cast"}
SCALES = {"Add", "Mul"}  # a bias, or the scale of an 8-bit product: no reason for a kernel of its own
WIDTH = {"fp32": 3, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}  # in which order precisions win in a mixed product
REFORMAT_KINDS = {"reformat", "shuffle", "slice", "concatenation", "noop", "copy"}
HOST_KINDS = {"shape_call", "shape_host"}


@dataclass(frozen=True)
class Tensor:
    """What goes into a layer or comes out: its name, shape (-1 for what is known at run time) and type."""

    name: str
    shape: tuple[int, ...]
    type: str  # fp32 fp16 bf16 int8 fp8 int32 int64 uint8 bool


@dataclass(frozen=True)
class Layer:
    """One layer of a plan; most are one kernel."""

    name: str
    kind: str  # as the runtime calls it
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    onnx: tuple[str, ...]  # nodes of the graph it does, as far as the builder tells
    role: str = ""  # attention, product, convolution, plugin, pointwise, reformat, cast, host
    precision: str = ""  # of products, convolutions, attention and plugins: the type they multiply in
    reason: str = ""  # of reformat and cast: why it is there
    op: str = ""  # of a plugin: what it is, such as SegmenterAttention


def classify(layers: Sequence[Layer], inputs: Sequence[str], outputs: Sequence[str]) -> tuple[Layer, ...]:
    """The same layers with role, precision and reason. inputs, outputs: names of the graph's."""
    known = [_with_role(layer) for layer in layers]
    place = Place(known, inputs, outputs)
    return tuple(
        replace(layer, reason=next((text for holds, text in REASONS if holds(layer, place)), ""))
        if layer.role in ("reformat", "cast")
        else layer
        for layer in known
    )


class Place:
    """Who makes and who reads a layer's tensors."""

    def __init__(self, layers: Sequence[Layer], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.makers: dict[str, list[Layer]] = {}
        self.readers: dict[str, list[Layer]] = {}
        self.inputs, self.outputs = set(inputs), set(outputs)
        self.of_images = set(inputs)  # tensors that depend on the images; layers come in the order they run in
        for layer in layers:
            if any(tensor.name in self.of_images for tensor in layer.inputs):
                self.of_images.update(tensor.name for tensor in layer.outputs)
            for tensor in layer.outputs:
                self.makers.setdefault(tensor.name, []).append(layer)
            for tensor in layer.inputs:
                self.readers.setdefault(tensor.name, []).append(layer)

    def before(self, layer: Layer) -> list[Layer]:
        return [maker for tensor in layer.inputs for maker in self.makers.get(tensor.name, ())]

    def after(self, layer: Layer) -> list[Layer]:
        return [reader for tensor in layer.outputs for reader in self.readers.get(tensor.name, ())]


def steps(layer: Layer) -> tuple[str, ...]:
    """What a generated kernel does, in order, by its name: ("Cast", "Mul", "Fc"); () for another layer."""
    found = re.match(r"__myl_([A-Z][A-Za-z]*?)_(?:myl|0x)", layer.name)
    return tuple(re.findall("[A-Z][a-z]*", found[1])) if found else ()


def _with_role(layer: Layer) -> Layer:
    kind, done = layer.kind.lower(), set(steps(layer))
    tensors = (*layer.inputs, *layer.outputs)
    if kind in HOST_KINDS or (kind in ("reshape", "cast") and all(_is_number(tensor) for tensor in tensors)):
        return replace(layer, role="host")
    if re.search(r"mha|fused_attention|flash_attention", layer.name.lower()):
        return replace(layer, role="attention", precision=_widest([tensor.type for tensor in layer.inputs]))
    if "plugin" in kind or kind == "custom_layer":
        return replace(layer, role="plugin", precision=_widest([tensor.type for tensor in layer.inputs]))
    if "conv" in kind or kind == "correlation":
        return replace(layer, role="convolution", precision=_multiplied_in(layer))
    if "gemm" in kind or "matrix" in kind or "matmul" in kind or done & {"Fc", "Gemm", "Bmm"}:
        return replace(layer, role="product", precision=_multiplied_in(layer))
    if kind == "cast" or (done and done <= MOVES | CASTS and done & CASTS):
        return replace(layer, role="cast")
    if kind in REFORMAT_KINDS or (done and done <= MOVES | SCALES and done & MOVES):
        return replace(layer, role="reformat")
    return replace(layer, role="pointwise")


def _is_number(tensor: Tensor) -> bool:
    return tensor.type in ("int64", "int32") and len(tensor.shape) <= 1


def _multiplied_in(layer: Layer) -> str:
    """8 bits when both sides are; else the widest type, for then the 8-bit side is dequantised first."""
    weights = [tensor.type for tensor in layer.constants if sum(side != 1 for side in tensor.shape) >= 2]
    sides = [tensor.type for tensor in layer.inputs]
    if not weights:
        return _widest(sides)
    weight = _widest(weights)
    return weight if weight in sides or weight not in ("int8", "fp8") else _widest(sides)


def _widest(types: Sequence[str]) -> str:
    return max(types, key=lambda name: WIDTH.get(name, 0), default="")


Rule = Callable[[Layer, Place], bool]


def _reads_the_images(layer: Layer, place: Place) -> bool:
    return any(tensor.name in place.inputs for tensor in layer.inputs)


def _writes_an_output(layer: Layer, place: Place) -> bool:
    return any(tensor.name in place.outputs for tensor in layer.outputs)


def _of_no_images(layer: Layer, place: Place) -> bool:
    """All of its inputs are known to come from constants and sizes."""
    return all(tensor.name in place.makers and tensor.name not in place.of_images for tensor in layer.inputs)


def _feeds_attention(layer: Layer, place: Place) -> bool:
    """Directly, or through one more such layer: k is scaled on its way."""
    following = place.after(layer)
    further = [later for one in following if one.role == "reformat" for later in place.after(one)]
    return any(one.role == "attention" for one in (*following, *further))


def _follows_attention(layer: Layer, place: Place) -> bool:
    return any(one.role == "attention" for one in place.before(layer))


def _pads_a_side(layer: Layer, place: Place) -> bool:
    if len(layer.inputs) != 1 or len(layer.outputs) != 1:
        return False
    before, after = layer.inputs[0].shape, layer.outputs[0].shape
    grown = [new - old for old, new in zip(before, after, strict=False) if new != old]
    return len(before) == len(after) and len(grown) == 1 and 0 < grown[0] < 16 and _feeds_a_product(layer, place)


def _feeds_a_product(layer: Layer, place: Place) -> bool:
    return any(one.role == "product" for one in place.after(layer))


def _feeds_unfused_attention(layer: Layer, place: Place) -> bool:
    """A product of two activations, or what pads a side for it."""
    following = place.after(layer)
    further = [later for one in following if one.role == "reformat" for later in place.after(one)]
    return any(_of_activations(one, place) for one in (*following, *further))


def _follows_unfused_attention(layer: Layer, place: Place) -> bool:
    return any(_of_activations(one, place) for one in place.before(layer))


def _of_activations(layer: Layer, place: Place) -> bool:
    """Whether both sides of a product depend on the images: no weights, also none that are dequantised at run time."""
    if layer.role != "product" or any(sum(side != 1 for side in tensor.shape) >= 2 for tensor in layer.constants):
        return False
    return all(tensor.name in place.of_images for tensor in layer.inputs)


def _finishes_a_product(layer: Layer, place: Place) -> bool:
    return bool(SCALES & set(steps(layer))) and any(one.role == "product" for one in place.before(layer))


def _reorders_tokens(layer: Layer, place: Place) -> bool:
    sides = {(tensor.shape, tensor.type) for tensor in (*layer.inputs, *layer.outputs)}
    return len(sides) == 1 and "Tran" in steps(layer) and not layer.constants


REASONS: tuple[tuple[Rule, str], ...] = (
    (_reads_the_images, "the images, into the graph's precision and the channels its convolution takes"),
    (_writes_an_output, "an output, from the type it is computed in to the one promised"),
    (_of_no_images, "constants laid out anew, or position embeddings resized for images of another size"),
    (_feeds_attention, "q, k or v: bias and scale, laid out by heads for the attention kernel"),
    (_follows_attention, "heads of the attention put side by side again"),
    (_pads_a_side, "an odd number of tokens, padded to what a product's kernel reads at once"),
    (_feeds_unfused_attention, "q, k or v laid out by heads for an attention that is not fused"),
    (_follows_unfused_attention, "heads of an attention that is not fused put side by side again"),
    (_finishes_a_product, "scale and bias of a product, its tokens put into another order on the way"),
    (_reorders_tokens, "tokens put from one order of batch and place into the other"),
)
