"""ONNX Runtime on the CPU: fp32, fp16 and int8 graphs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from segmenter.errors import EngineError
from segmenter_engines.manifest import read_manifest
from segmenter_engines.sessions.session import Session, Spec


def session_options(threads: int | None) -> onnxruntime.SessionOptions:
    """Options with every optimisation on, `threads` CPU threads (all cores when None), and warnings kept quiet."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


class OnnxRuntimeSession(Session):
    """An exported graph in ONNX Runtime, cut after its class masks."""

    engine = "onnxruntime"

    def __init__(self, path: Path, threads: int, precision: str | None = None) -> None:
        manifest = read_manifest(path)
        super().__init__(Spec.of_manifest(manifest), threads)
        graph = onnx.load(path)
        # ONNX Runtime computes every output a graph has; without this one it drops the upsampling too
        for output in [output for output in graph.graph.output if output.name != "masks"]:
            graph.graph.output.remove(output)
        try:
            self._session = onnxruntime.InferenceSession(
                graph.SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no narrower base
            raise EngineError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot open it: {error}") from error

    def _masks(self, x: np.ndarray) -> np.ndarray:
        masks: np.ndarray = self._session.run(["masks"], {"images": x})[0]
        return masks

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"runtime": f"onnxruntime {onnxruntime.__version__}"}
