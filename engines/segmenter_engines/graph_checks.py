"""What is checked of an ONNX graph before a runtime reads it: everything it is made of lies in its one file.

ONNX lets a tensor name another file that holds its values, anywhere on the disk. Graphs made here never do, the hash in
a manifest would not cover that file, and a forged graph could name any.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segmenter.errors import EngineError

MAX_BYTES = (1 << 31) - 1  # protobuf's own limit


def require_size(path: Path) -> None:
    """See that a graph is no larger than a protobuf can be.

    Raises EngineError when it is.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise EngineError(f"{path}: {size} bytes, an ONNX file holds at most {MAX_BYTES}; export a smaller variant")


def require_self_contained(path: Path) -> None:
    """See that a graph holds all its values.

    Raises EngineError when it is no graph, or names values in another file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise EngineError(f"{path}: is no ONNX graph ({error}); make it again with `segmenter export`") from error
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "a file not named")
            raise EngineError(
                f"{path}: tensor {tensor.name[:80]!a} has its values in another file ({where[:80]!a}), which nothing"
                " vouches for; make the graph again with `segmenter export`, or save it with its weights inside"
            )


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor within a protobuf message: initializers, attributes, functions, whatever holds one."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in (value,) if hasattr(value, "ListFields") else value:
            if field.message_type.name == "TensorProto":
                yield inner
            else:
                yield from _tensors(inner)
