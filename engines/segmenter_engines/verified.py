"""What the verdicts in a manifest are worth: for this file, in this engine, or only for the graph behind it.

`verification` holds a verdict a key: `openvino-int8` is of the artifact itself in that engine, and in a plan's manifest
`graph:onnxruntime-fp16` is of the graph the plan was built from. A verdict counts for the file whose hash it names, and
for a manifest that says the same of it as then (`facts_digest`).
"""

import hashlib
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from segmenter.cpu import int8_saturates
from segmenter.errors import EngineError
from segmenter_engines.manifest import Manifest, read_manifest, vouched

OF_GRAPH = "graph:"


def facts_digest(manifest: Manifest) -> str:
    """SHA-256 of what a manifest says that decides labels; csrc/src/verified.cc has the same.

    Of a line each, without one that ends the last: precision, input, patch size, heights, widths, batches, outputs,
    plugins, the SHA-256 of the plugin library, mean, std, and every class. Parts of a line are parted by a space, mean
    and std are doubles as 16 hexadecimal digits (IEEE 754, big endian).
    """
    preprocess = manifest.preprocess
    lines = [
        manifest.precision,
        manifest.input,
        str(manifest.patch_size),
        *(" ".join(map(str, span)) for span in (manifest.height, manifest.width, manifest.batch)),
        " ".join(manifest.outputs),
        " ".join(manifest.plugins),
        (manifest.plugin_library or {}).get("sha256", ""),
        *(" ".join(struct.pack(">d", one).hex() for one in three) for three in (preprocess.mean, preprocess.std)),
        *manifest.classes,
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def graph_verification(graph: Manifest) -> dict[str, Any] | None:
    """The verdicts of a graph as the plan made from it carries them, named as the graph's; None without any."""
    own = {name: verdict for name, verdict in (graph.verification or {}).items() if not name.startswith(OF_GRAPH)}
    return {OF_GRAPH + name: verdict for name, verdict in own.items()} or None


def carry(graph: Path, plan: Path) -> None:
    """Write a graph's verdicts into the manifest of the plan that was built from it.

    Raises EngineError when it was built from another graph.
    """
    base, manifest = read_manifest(graph), read_manifest(plan)
    if manifest.source.get("onnx") != vouched(base.sha256):
        raise EngineError(f"{plan}: was not built from {graph} as it is now; build it again")
    own = {name: told for name, told in (manifest.verification or {}).items() if not name.startswith(OF_GRAPH)}
    replace(manifest, verification={**own, **(graph_verification(base) or {})} or None).write(plan)


def unverified(manifest: Manifest, engine: str, device: str | None = None) -> str | None:
    """Why an artifact may not be taken for verified in an engine, in words; None when it may.

    engine: a session's name, such as `openvino-int8`. device: the name of the GPU that a plan must have passed on; None
    where any will do.
    """
    found = manifest.verification or {}
    verdict = found.get(engine)
    if verdict is None or verdict.get("sha256") != manifest.sha256:
        graph = {name: told for name, told in found.items() if name.startswith(OF_GRAPH)}
        if any(not told["passed"] for told in graph.values()):
            return f"the graph it was built from failed its verification: {_faults(graph)}"
        if graph and all(manifest.source.get("onnx") == vouched(told.get("sha256", "")) for told in graph.values()):
            return f"verified only as the graph it was built from, not in {engine}"
        return f"not verified in {engine}"
    if not verdict["passed"]:
        return f"failed its verification in {engine}: {_faults({engine: verdict})}"
    if verdict.get("facts_sha256") != facts_digest(manifest):
        return (
            f"verified in {engine} by an older release, or before what its manifest says of classes, preprocessing or"
            " sizes was changed"
        )
    if device is not None and manifest.kind == "plan" and verdict.get("device") != device:
        return f"verified in {engine} on {_printable(verdict.get('device')) or 'another GPU'}, not on this {device}"
    return None


def passed_saturating(manifest: Manifest, engine: str) -> bool:
    """Whether an artifact passed in an engine on a CPU whose sums of 8 bit products can overflow."""
    flags = (manifest.verification or {}).get(engine, {}).get("cpu_flags")
    return unverified(manifest, engine) is None and isinstance(flags, list) and int8_saturates(flags, "x86_64")


def _faults(verdicts: dict[str, Any]) -> str:
    # a verdict is from a file and may hold anything
    lists = [told.get("faults") for told in verdicts.values()]
    texts = [fault for faults in lists if isinstance(faults, list) for fault in faults if isinstance(fault, str)]
    return _printable("; ".join(texts)) or "it does not tell why"


def _printable(text: Any) -> str:
    return re.sub("[^ -~]", "?", text)[:200] if isinstance(text, str) else ""
