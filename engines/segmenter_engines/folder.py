"""An engine folder: which files it holds, which is made of which, and whether they belong together.

It holds a copy of the checkpoint in `checkpoint/` and the artifacts below it in `ARTIFACTS`, each with its manifest.
What could not be made leaves `<artifact>.reason.txt` instead, one line that says why.
"""

from pathlib import Path

from segmenter.errors import EngineError
from segmenter.files import atomic_path
from segmenter_engines.layer_report import page_path, report_path
from segmenter_engines.manifest import Manifest, manifest_path, read_manifest, require_checkpoint, vouched
from segmenter_engines.signature import signature_path

CHECKPOINT = "checkpoint"
FP32, FP16 = "model.fp32.onnx", "model.fp16.onnx"
INT8, INT8_TENSORRT = "model.int8.onnx", "model.int8-trt.onnx"
PLAN_FP16, PLAN_INT8 = "model.fp16.plan", "model.int8.plan"
ARTIFACTS = (FP32, INT8, FP16, INT8_TENSORRT, PLAN_FP16, PLAN_INT8)  # in the order they are made from each other
PLANS = (PLAN_FP16, PLAN_INT8)
MADE_OF = {INT8: FP32, INT8_TENSORRT: FP16, PLAN_FP16: FP16, PLAN_INT8: INT8_TENSORRT}


def reason_path(artifact: Path) -> Path:
    """Where the reason lies, in one line, why an artifact could not be made."""
    return artifact.with_name(artifact.name + ".reason.txt")


def write_reason(artifact: Path, reason: str) -> None:
    with atomic_path(reason_path(artifact)) as temporary:
        temporary.write_text(reason + "\n", encoding="utf-8")


def why_missing(artifact: Path) -> str:
    """Why an artifact is not in its folder, in one line."""
    reason = reason_path(artifact)
    if reason.is_file():
        return reason.read_text(encoding="utf-8").strip()
    return f"{artifact.name} is not in the engine folder; make it with `segmenter pipeline`"


def clear(folder: Path) -> None:
    """Remove every artifact with what lies beside it, so that nothing of an older checkpoint is taken for a newer's."""
    for name in ARTIFACTS:
        artifact = folder / name
        beside = (reason_path(artifact), signature_path(artifact), report_path(artifact), page_path(artifact))
        for path in (manifest_path(artifact), artifact, *beside):
            path.unlink(missing_ok=True)


def manifests(folder: Path) -> dict[str, Manifest]:
    """Manifests of the artifacts a folder holds, by name; the artifacts themselves are not read.

    Raises EngineError when one is made of other weights than lie in the folder, of another graph than the one beside
    it, or for another image size than the rest.
    """
    found = {name: read_manifest(folder / name, check_hash=False) for name in ARTIFACTS if (folder / name).is_file()}
    advice = "the folder holds two networks; fill it again with `segmenter pipeline`"
    for name, manifest in found.items():
        require_checkpoint(folder / name, manifest, folder / CHECKPOINT)
        parent = found.get(MADE_OF.get(name, ""))
        if parent is not None and manifest.source.get("onnx") != vouched(parent.sha256):
            raise EngineError(f"{folder / name}: made of another graph than the {parent.artifact} beside it; {advice}")
    sizes = {"x".join(map(str, manifest.size)) for manifest in found.values()}
    if len(sizes) > 1:
        raise EngineError(f"{folder}: its engines take images of {' and '.join(sorted(sizes))}; {advice}")
    return found
