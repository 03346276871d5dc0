"""Plans of TensorRT 10 and 11 and of TensorRT-RTX: images from the host or on the device, labels made by the plan."""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import segmenter_trt
from segmenter.errors import EngineError, Unavailable
from segmenter.ops import label_dtype
from segmenter_engines.manifest import PIXELS, read_manifest
from segmenter_engines.plan_checks import read_plan
from segmenter_engines.sessions.device import LIBRARIES, Device, open_device, require_driver
from segmenter_engines.sessions.device.array import DeviceArray, view_of
from segmenter_engines.sessions.lane import Lane
from segmenter_engines.sessions.overlap import overlapped
from segmenter_engines.sessions.plan import INPUT, acquire, release
from segmenter_engines.sessions.runner import Runner
from segmenter_engines.sessions.session import Session
from segmenter_engines.sessions.spec import Spec
from segmenter_engines.tensorrt_api import product

OLDEST = (8, 0)  # compute capability of the first GPUs plans are built for
ALIGNMENT = 256  # bytes, of every address given to a plan


class TensorRTSession(Session):
    """A plan on a GPU, with a context and streams of its own; sessions of one plan share what it holds.

    The GPU is PyTorch's, else that of PyCUDA's or cuda-python's current context, else the first. Needs an NVIDIA
    driver and one of the GPUs the plan was built for, Ampere or later.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        precision: str | None = None,
        *,
        graphs: bool = True,
        plugins: Path | None = None,
        libraries: Sequence[str] = tuple(LIBRARIES),
    ) -> None:
        """graphs: whether shapes that come again are captured as CUDA graphs. plugins: the library of custom ops; that
        of `segmenter_trt` when None. libraries: what may drive the GPU, the first that can; arrays of PyCUDA's own
        context need it to.
        """
        manifest = read_manifest(path, check_hash=False)  # `read_plan` checks it, of the bytes that are loaded
        self.engine = manifest.engine
        super().__init__(Spec.of_manifest(manifest), threads)
        self._refuse(precision)
        self._manifest = manifest
        self._product = product(self.engine).name
        content = read_plan(path, manifest)  # first: what lacks a GPU to run on is told to be whole
        require_driver(self.engine)
        if not {"labels", "masks"} & set(manifest.outputs):
            raise EngineError(f"{path}: gives {', '.join(manifest.outputs)}; a session needs labels or masks of a plan")
        self._device: Device = open_device(self.engine, libraries)
        if self._device.capability < OLDEST:
            raise Unavailable(
                f"engine {self.engine}: {self._device.gpu} is older than Ampere; run the plan on a later GPU"
            )
        if manifest.plugins and plugins is None:
            plugins = _plugin_library()
        with self._named(), self._device.current():
            plan = acquire(path, manifest, content, self._device, plugins)
            del content  # the runtime has its own
            try:
                self._runner = Runner(plan, self._device, graphs)
                self._lane = Lane(self._runner)
            except BaseException:
                release(plan)
                raise
        # the interpreter calls it too, before it takes modules apart
        self._close = weakref.finalize(self, self._runner.close)
        self._plan_labels = "labels" in manifest.outputs
        # labels alone do not show that a score was no number
        self._needed = tuple(name for name in ("labels", "masks") if name in manifest.outputs)

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Labels of images or batches, in their order, while later ones are being uploaded and computed.

        An error, of `images` or of the engine, comes after the labels of what came before it, and ends the stream.
        """
        with self._at_work():
            up, down = self._device.stream(), self._device.stream()
            lanes = [Lane(self._runner, up, down) for _ in range(2)]
        try:
            yield from overlapped(images, lanes, self._submit, self._arrived)
        finally:
            if not self._runner.closed:
                with self._device.current():
                    for lane in lanes:
                        lane.free()
                        self._runner.owned.remove(lane)

    def run_device(self, images: Any, stream: Any = None) -> DeviceArray:
        """Labels of images that are on the device already, without a copy in or out, and without waiting.

        images: any array there with `__dlpack__` or `__cuda_array_interface__`, in C order: uint8 RGB [B, H, W, 3] for
        a plan that takes pixels, else normalised float32 [B, 3, H, W]; not written to before the labels are whole.
        stream: where to compute, a handle or another library's stream; the session's own when None. Returns [B, H, W]
        in the plan's own type: uint8, int32 when K > 256. Scores that are no numbers go unseen here.
        Raises EngineError for another dtype, shape, size, batch, layout or device, and where the plan gives no labels.
        """
        self._require_output("labels")
        with self._at_work():
            runner, device = self._runner, self._device
            work = runner.stream if stream is None else device.foreign(stream)
            view = view_of(images, device, work)
            pixels = self.spec.input == PIXELS
            wanted, axes = runner.plan.types[INPUT], "[B, H, W, 3]" if pixels else "[B, 3, H, W]"
            channels = view.shape[3 if pixels else 1] if len(view.shape) == 4 else 0
            if view.dtype != wanted or channels != 3:
                raise EngineError(f"images {view.dtype} {view.shape}: this plan takes {wanted} {axes} on the device")
            if not view.contiguous or view.pointer % ALIGNMENT:
                what = f"start at a multiple of {ALIGNMENT} bytes" if view.contiguous else "lie in C order without gaps"
                raise EngineError(f"images {view.shape} do not {what}, which a plan needs; pass a copy")
            self._require_size((view.shape[1], view.shape[2]) if pixels else (view.shape[2], view.shape[3]))
            self._require_batch(view.shape[0])
            outputs = runner.outputs(view.shape)
            memory = {
                name: device.allocate(runner.plan.types[name].itemsize * prod(shape), work)
                for name, shape in outputs.items()
            }
            addresses = {INPUT: view.pointer} | {name: each.pointer for name, each in memory.items()}
            done = runner.run_at(view.shape, addresses, work, (view, memory))
            return DeviceArray(device, memory["labels"], outputs["labels"], runner.plan.types["labels"], work, done)

    def describe(self) -> dict[str, Any]:
        """Facts as of any session, and: the GPU and what drives it, profile, shapes captured, memory in bytes."""
        with self._at_work():
            free, total = self._device.memory()
        runner, manifest = self._runner, self._manifest
        return super().describe() | {
            "runtime": f"{self._product} {runner.plan.trt.__version__}",
            "device": self._device.gpu,
            "compute_capability": ".".join(map(str, self._device.capability)),
            "driver": self._device.driver,
            "device_library": self._device.name,
            "profile": {"batch": manifest.batch, "height": manifest.height, "width": manifest.width},
            "outputs": manifest.outputs,
            "labels_by": "the plan" if self._plan_labels else "segmenter_trt.upsample_argmax",
            "numbers_checked": "masks" in manifest.outputs,
            "graphs": runner.graphs,
            "no_graphs": runner.no_graphs,
            "plan_shared_by": runner.plan.sessions,
            "memory": {"session": runner.device_bytes, "free": free, "total": total},
        }

    def close(self) -> None:
        super().close()
        self._close()

    def _labels(self, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        with self._at_work():
            return self._labels_of(self._through(x, self._needed), size)

    def _masks(self, x: np.ndarray) -> np.ndarray:
        self._require_output("masks")
        with self._at_work():
            return self._through(x, ("masks",))["masks"].astype(np.float32, copy=False)

    def _confidence(self, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if "confidence" not in self._manifest.outputs:
            return super()._confidence(x, size)
        with self._at_work():
            confidence = self._through(x, ("confidence",))["confidence"]
        self._require_numbers(bool(np.isfinite(confidence).all()))
        return confidence.astype(np.float32, copy=False)

    def _through(self, x: np.ndarray, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
        self._lane.submit(x, wanted)
        return self._lane.collect()

    def _submit(self, lane: Lane, image: np.ndarray) -> None:
        batch = self._checked(image)
        with self._at_work():
            lane.submit(self._feed(batch), self._needed)

    def _arrived(self, lane: Lane, image: np.ndarray) -> np.ndarray:
        with self._at_work():
            labels = self._labels_of(lane.collect(), (image.shape[-3], image.shape[-2]))
        return labels[0] if image.ndim == 3 else labels

    def _labels_of(self, results: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
        if not self._plan_labels:
            masks = results["masks"].astype(np.float32, copy=False)
            return segmenter_trt.upsample_argmax(masks, self._padded(*size), size, threads=self.threads)
        if "masks" in results:
            self._require_numbers(bool(np.isfinite(results["masks"]).all()))
        wanted = np.int16 if label_dtype(len(self.classes)).itemsize > 1 else np.uint8
        return results["labels"].astype(wanted, copy=False)

    def _require_output(self, name: str) -> None:
        if name not in self._manifest.outputs:
            raise EngineError(
                f"{self.name}, {self.spec.model}: this plan gives {', '.join(self._manifest.outputs)} only; build it"
                f" with {name} among its --outputs"
            )

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self._closed = self._runner.closed  # which the interpreter's end closes without asking the session
        with self._named(), self._device.current():
            yield


def _plugin_library() -> Path | None:
    """The plugin library that came with `segmenter_trt`, if it was built with one."""
    try:
        return Path(segmenter_trt.plugin_library())
    except segmenter_trt.Unavailable:  # it was not: the plan's checks say which library is wanted
        return None
