"""ONNX Runtime on the CPU: fp32, fp16 and int8 graphs; bf16 ones to be verified."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from segmenter.cpu import cpu_flags, int8_saturates
from segmenter.errors import EngineError
from segmenter_engines.cut import cut
from segmenter_engines.manifest import read_manifest
from segmenter_engines.sessions.graph_promises import Sides, require_native, require_promised
from segmenter_engines.sessions.session import Mode, Session
from segmenter_engines.sessions.spec import Spec
from segmenter_engines.widen import rounded


def session_options(threads: int | None, precision: str = "") -> onnxruntime.SessionOptions:
    """Options with every optimisation on and warnings kept quiet.

    threads: of the CPU, as many as ONNX Runtime chooses when None. precision: of the graph, where it is known.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    # a plan of the memory is kept beside the memory it was drawn from: twice as much, for no time that shows
    options.enable_mem_pattern = False
    flags = cpu_flags()
    # exact products of uint8 and int8, where they would overflow or nothing is known; with VNNI they only cost, 10 %
    if int8_saturates(flags) or not flags:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if precision == "fp8":
        # there are no float8 kernels to gain, and 1.30 moves Q/DQ nodes so that others get float8, and refuses them
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


class OnnxRuntimeSession(Session):
    """An exported graph in ONNX Runtime, cut after its class masks.

    mode: `latency` shares the threads over each layer; `throughput` gives each image of a batch a thread of its own,
    which need not wait for the others after every layer, and leaves a single image with one.
    """

    engine = "onnxruntime"
    modes = ("latency", "throughput")
    _outputs: tuple[str, ...] = ("masks",)

    def __init__(self, path: Path, threads: int, precision: str | None = None, mode: Mode = "latency") -> None:
        manifest = read_manifest(path)
        require_native(path, manifest, "ONNX Runtime")
        super().__init__(Spec.of_manifest(manifest), threads)
        self._refuse(precision)
        self.mode = self._splitting(mode)
        self._workers = ThreadPoolExecutor(threads) if mode == "throughput" else None
        graph = self._graph(path)
        cut(graph.graph, self._outputs)
        try:
            self._session: Any = onnxruntime.InferenceSession(
                graph.SerializeToString(),
                session_options(1 if self._workers else threads, manifest.precision),
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:  # onnxruntime's exceptions share no narrower base
            raise EngineError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot open it: {error}") from error
        given = {output.name: _sides(output) for output in self._session.get_outputs()}
        require_promised(path, manifest, _sides(self._session.get_inputs()[0]), given.get("masks", ()))

    def _graph(self, path: Path) -> onnx.ModelProto:
        return onnx.load(path)

    def _masks(self, x: np.ndarray) -> np.ndarray:
        return self._run(x)["masks"]

    def _run(self, x: np.ndarray) -> dict[str, np.ndarray]:
        if self._workers is None or len(x) == 1:
            results = self._session.run(self._outputs, {"images": x})
        else:
            rows = self._workers.map(lambda row: self._session.run(self._outputs, {"images": row[None]}), x)
            results = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        super().close()
        if self._workers is not None:
            self._workers.shutdown()
        self._session = None

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"runtime": f"onnxruntime {onnxruntime.__version__}"}


def _sides(value: Any) -> Sides:
    """Of an input or output as ONNX Runtime tells of it: a side left open has a name, or none."""
    return [side if isinstance(side, int) else None for side in value.shape]


class WholeGraphSession(OnnxRuntimeSession):
    """An exported graph as a plan ships it: the labels it makes itself, every result rounded to the type it has there.

    Slower, and for verification alone.
    """

    _outputs = ("labels", "masks")

    def _graph(self, path: Path) -> onnx.ModelProto:
        return rounded(onnx.load(path))

    def _labels(self, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        outputs = self._run(x)
        self._require_numbers(bool(np.isfinite(outputs["masks"]).all()))
        return outputs["labels"]

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"labels_by": "the graph"}
