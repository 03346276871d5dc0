"""A TensorRT whose plans compute class masks from the mean colours of patches, in the memory of a `FakeCuda`.

As the real one: contexts refuse shapes outside the profile, compute where addresses point when the stream gets there,
must be enqueued once for a shape before a capture, need their scratch memory for themselves from beginning to end, and
break graphs when changed after it.
"""

import json
from types import SimpleNamespace

import numpy as np

import segmenter_trt
from segmenter.config import Preprocess
from segmenter.files import sha256
from segmenter.preprocess import affine
from segmenter_engines.manifest import Manifest

VERSIONS = {"tensorrt-rtx": "1.7.1.116", "tensorrt": "10.14.1.48"}
PATCH = 16
SPEC = Preprocess()
SCRATCH_BYTES = 512


def weights(classes):
    return np.random.default_rng(7).normal(0, 1, (classes, 3)).astype(np.float32)


def masks_of(x, classes):
    """Normalised float32 [B, 3, H, W] -> [B, K, h, w] on the patch grid of the padded image."""
    B, _, H, W = x.shape
    x = np.pad(x, ((0, 0), (0, 0), (0, -H % PATCH), (0, -W % PATCH)))
    h, w = x.shape[2] // PATCH, x.shape[3] // PATCH
    means = x.reshape(B, 3, h, PATCH, w, PATCH).mean((3, 5), dtype=np.float32)
    return np.ascontiguousarray(np.einsum("kc,bchw->bkhw", weights(classes), means)).astype(np.float32)


def normalized(images):
    scale, shift = affine(SPEC)
    return segmenter_trt.normalize(np.ascontiguousarray(images), scale, shift, *images.shape[1:3], 1)


def labels_of(images, classes):
    H, W = images.shape[1:3]
    padded = (H + -H % PATCH, W + -W % PATCH)
    return segmenter_trt.upsample_argmax(masks_of(normalized(images), classes), padded, (H, W), threads=1)


def confidence_of(masks, size):
    """Softmax probability of the winner, of the nearest patch: enough to be told apart."""
    peak = 1 / np.exp(masks - masks.max(1, keepdims=True)).sum(1)
    return peak.repeat(PATCH, 1).repeat(PATCH, 2)[:, : size[0], : size[1]].astype(np.float32)


def write_plan(path, engine="tensorrt-rtx", **changes):
    """A plan of the fake and its manifest. changes: of the manifest's fields, and `classes` as a number."""
    classes = changes.pop("classes", 5)
    recorded = {name: changes.pop(name) for name in ("details", "compute_capabilities") if name in changes}
    facts = {
        "input": "normalized",
        "outputs": ("labels",),
        "batch": (1, 1, 4),
        "height": (40, 40, 40),
        "width": (56, 56, 56),
        "plugins": (),
    } | changes
    body = json.dumps(facts | {"classes": classes}).encode()
    head = bytearray(32)
    head[:4] = b"vtrt" if engine == "tensorrt-rtx" else b"ftrt"
    head[16:24] = (32 + len(body)).to_bytes(8, "little")
    head[24:28] = bytes(int(part) for part in VERSIONS[engine].split("."))
    head[28:32] = head[:4]
    path.write_bytes(bytes(head) + body)
    manifest = Manifest(
        artifact=path.name,
        kind="plan",
        engine=engine,
        precision="fp16",
        sha256=sha256(path),
        source={},
        model="small",
        patch_size=PATCH,
        classes=tuple(f"class {index}" for index in range(classes)),
        palette=((0, 0, 0),) * classes,
        preprocess=SPEC,
        command="segmenter build",
        versions={engine: VERSIONS[engine]},
        machine="fake",
        **facts,
        **recorded,
    )
    manifest.write(path)
    return path


class FakeTensorRT:
    """The module, for one device. What is to go wrong is set on it."""

    def __init__(self, cuda, engine="tensorrt-rtx"):
        self.cuda, self.engine, self.__version__ = cuda, engine, VERSIONS[engine]
        self.deserialized = self.alive = 0
        self.contexts = []
        self.compiled = []  # caches that kernels were compiled into
        self.enqueue_fails = self.nan = self.refuses_plan = self.not_capturable = False
        self.log = SimpleNamespace(messages=[], clear=self._clear)
        self.log.errors = lambda: "; ".join(" ".join(text.split()) for text in self.said)
        self.said = []
        self.creators, self.loaded = [], []
        self.library_brings = ()
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
        if engine == "tensorrt-rtx":
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="lazy", EAGER="eager")

    def _clear(self):
        self.said = []

    def Runtime(self, log):
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize)

    def get_plugin_registry(self):
        return self

    @property
    def all_creators(self):
        return [SimpleNamespace(name=name) for name in self.creators]

    def load_library(self, path):
        self.loaded.append(path)
        self.creators += self.library_brings
        return object()

    def _deserialize(self, plan):
        self.deserialized += 1
        if self.refuses_plan:
            self.said.append("magic tag does not match")
            return None
        return Engine(self, json.loads(plan[32:]))


class Engine:
    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, trt, facts):
        self.trt, self.facts, self.cuda = trt, facts, trt.cuda
        trt.alive += 1
        pixels = facts["input"] == "pixels"
        self.kinds = {"images": "UINT8" if pixels else "FLOAT"}
        labels = "INT32" if facts["classes"] > 256 else "UINT8"
        self.kinds |= {name: labels if name == "labels" else "FLOAT" for name in facts["outputs"]}
        self.num_io_tensors = len(self.kinds)
        self.configs = []

    def __del__(self):
        self.trt.alive -= 1

    def get_tensor_name(self, index):
        return list(self.kinds)[index]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=self.kinds[name])

    def get_tensor_profile_shape(self, name, index):
        assert (name, index) == ("images", 0)
        ends = zip(self.facts["batch"], self.facts["height"], self.facts["width"], strict=True)
        return [(B, H, W, 3) if self.facts["input"] == "pixels" else (B, 3, H, W) for B, H, W in ends]

    def create_runtime_config(self):
        assert self.trt.engine == "tensorrt-rtx"
        cache = RuntimeCache(self.trt.compiled)
        config = SimpleNamespace(create_runtime_cache=lambda: cache, cache=None, allocation=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "allocation", strategy)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        self.configs.append(config)
        return config

    def create_execution_context(self, how):
        assert (how.allocation if self.trt.engine == "tensorrt-rtx" else how) == "user managed"
        context = Context(self)
        if self.trt.engine == "tensorrt-rtx":
            how.cache.compile()
            context.is_stream_capturable = lambda handle: not self.trt.not_capturable
        self.trt.contexts.append(how)
        return context


class RuntimeCache:
    """Of kernels; refuses what it did not write, as that of another version."""

    def __init__(self, compiled):
        self.compiled, self.held = compiled, b""

    def deserialize(self, blob):
        taken = blob.startswith(b"kernels")
        self.held = blob if taken else b""
        return taken

    def serialize(self):
        return self.held

    def compile(self):
        if not self.held:
            self.held = b"kernels"
            self.compiled.append(self)


class Context:
    def __init__(self, engine):
        self.engine, self.cuda, self.trt = engine, engine.cuda, engine.trt
        self.shape, self.addresses, self.scratch = None, {}, None
        self.version, self.prepared = 0, None

    def set_device_memory(self, pointer, nbytes):
        assert nbytes == SCRATCH_BYTES
        self.scratch = pointer

    def set_input_shape(self, name, shape):
        facts = self.engine.facts
        B, H, W = (*shape[:3],) if facts["input"] == "pixels" else (shape[0], *shape[2:])
        bounds = zip((B, H, W), (facts["batch"], facts["height"], facts["width"]), strict=True)
        if not all(least <= value <= most for value, (least, _, most) in bounds):
            self.trt.said.append("setInputShape: outside the profile")
            return False
        if shape != self.shape:
            self.version += 1
        self.shape = shape
        return True

    def get_tensor_shape(self, name):
        pixels, K = self.engine.facts["input"] == "pixels", self.engine.facts["classes"]
        B, H, W = self.shape[:3] if pixels else (self.shape[0], *self.shape[2:])
        if name == "masks":
            return (B, K, -(-H // PATCH), -(-W // PATCH))
        return (B, H, W)

    def set_tensor_address(self, name, pointer):
        if self.addresses.get(name) != pointer:
            self.version += 1
        self.addresses[name] = pointer
        return True

    def execute_async_v3(self, handle):
        trt, cuda, kinds = self.trt, self.cuda, self.engine.kinds
        assert set(self.addresses) == set(kinds)
        if trt.enqueue_fails:
            trt.said.append("enqueueV3: no room\nfor it")
            return False
        captured = cuda.capturing(handle)
        if captured and self.prepared != self.shape:
            trt.said.append("enqueueV3: not allowed while capturing")
            return False
        self.prepared = self.shape
        shape, addresses, version = self.shape, dict(self.addresses), self.version
        shapes = {name: self.get_tensor_shape(name) for name in kinds if name != "images"}
        dtypes = {"FLOAT": np.float32, "UINT8": np.uint8, "INT32": np.int32}

        def at(name, size):
            nbytes = int(np.prod(size)) * np.dtype(dtypes[kinds[name]]).itemsize
            found = cuda.bytes_at(addresses[name], nbytes)
            return None if found is None else found.view(dtypes[kinds[name]]).reshape(size)

        mark = np.frombuffer(np.random.default_rng().bytes(8), np.uint8)

        def begin():
            room = cuda.bytes_at(self.scratch, SCRATCH_BYTES)
            if room is not None:
                room[:8] = mark

        def work():
            if captured and version != self.version:
                cuda.faults.append("a graph whose context was changed since")
            room = cuda.bytes_at(self.scratch, SCRATCH_BYTES)
            images = at("images", shape)
            if images is None or room is None:
                return
            if not np.array_equal(room[:8], mark):
                cuda.faults.append("scratch memory somebody else computes in")
            pixels = self.engine.facts["input"] == "pixels"
            masks = masks_of(normalized(images) if pixels else images.copy(), self.engine.facts["classes"])
            if trt.nan:
                masks[0, 0, 0, 0] = np.nan
            size = shape[1:3] if pixels else shape[2:]
            padded = (size[0] + -size[0] % PATCH, size[1] + -size[1] % PATCH)
            for name, wanted in shapes.items():
                target = at(name, wanted)
                if target is None:
                    return
                if name == "masks":
                    target[...] = masks
                elif name == "confidence":
                    target[...] = confidence_of(masks, size)
                else:
                    target[...] = segmenter_trt.upsample_argmax(np.nan_to_num(masks), padded, size, threads=1)

        cuda.put(handle, begin)
        cuda.put(handle, work)
        return True
