"""An ONNX graph and its manifest, written together."""

from dataclasses import replace
from pathlib import Path

import onnx

from segmenter.files import atomic_paths, sha256
from segmenter_engines.manifest import Manifest, manifest_path


def write_graph(graph: onnx.ModelProto, manifest: Manifest, out: Path) -> Manifest:
    """Write a checked graph with its manifest beside it, both or neither; returns the manifest with the file's hash.

    Raises EngineError when `read_manifest` would refuse the manifest.
    """
    with atomic_paths(out, manifest_path(out)) as (temporary, beside):
        onnx.save(graph, temporary)
        onnx.checker.check_model(temporary, full_check=True)
        manifest = replace(manifest, sha256=sha256(temporary))
        beside.write_text(manifest.text(), encoding="utf-8")
    return manifest
