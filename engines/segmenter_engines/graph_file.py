"""An ONNX graph and its manifest, written together."""

from dataclasses import replace
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError

from segmenter.errors import EngineError
from segmenter.files import atomic_paths, sha256
from segmenter_engines.manifest import Manifest, manifest_path


def write_graph(graph: onnx.ModelProto, manifest: Manifest, out: Path) -> Manifest:
    """Write a checked graph with its manifest beside it, both or neither; returns the manifest with the file's hash.

    Raises EngineError when `read_manifest` would refuse the manifest, or the graph is larger than a file can be.
    """
    with atomic_paths(out, manifest_path(out)) as (temporary, beside):
        try:
            onnx.save(graph, temporary)
        except (EncodeError, ValueError) as error:
            raise EngineError(
                f"{out}: an ONNX file holds at most 2 GiB, and this graph cannot be written ({error}); export with"
                " --precision fp16, or a smaller variant"
            ) from error
        onnx.checker.check_model(temporary, full_check=True)
        manifest = replace(manifest, sha256=sha256(temporary))
        beside.write_text(manifest.text(), encoding="utf-8")
    return manifest
