"""A real plan on a real GPU, through every library that can drive one: `pytest tests/test_tensorrt_gpu.py -rA`."""

import numpy as np
import pytest
import torch

from segmenter.errors import EngineError, Unavailable
from segmenter.preprocess import normalize
from segmenter_engines import open_session
from segmenter_engines.build import build
from segmenter_engines.limits import LIMITS
from segmenter_engines.sessions.device import LIBRARIES, open_device, require_driver
from segmenter_engines.sessions.device.array import DeviceArray
from segmenter_engines.sessions.tensorrt import TensorRTSession
from tests.small_engines import H, W, pictures

LIMIT = LIMITS["fp16"].disagreement
pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]


@pytest.fixture(scope="module")
def plan(engine_folder, tmp_path_factory):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    try:
        require_driver("tensorrt-rtx")
    except Unavailable as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("plans") / "model.fp16.plan"
    build(engine_folder / "model.fp16.onnx", path, batch=(1, 2, 4), outputs=("labels", "masks"))
    try:
        open_session(path, threads=1).close()
    except EngineError as error:
        # TensorRT-RTX knows desktop GPUs: 1.7 refuses 9.0 and 10.0, those of data centres, and the manifest says so
        if "built for GPUs of compute capability" not in str(error):
            raise
        pytest.skip(str(error))
    return path


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("graphs", [True, False])
def test_a_plan_labels_as_pytorch_does(plan, reference, library, graphs):
    try:
        device = open_device("tensorrt-rtx", [library])
    except Unavailable as error:
        pytest.skip(str(error))
    batches = [pictures(1 + seed % 3, seed=seed) for seed in range(9)]
    truth = [reference(images) for images in batches]

    def wrong(labels, images):
        return np.mean([np.mean(a != b) for a, b in zip(labels, images, strict=True)])

    with TensorRTSession(plan, 1, graphs=graphs, libraries=[library]) as session:
        assert wrong([session(images) for images in batches], truth) <= LIMIT
        assert wrong(list(session.stream(batches)), truth) <= LIMIT
        facts = session.describe()
        print(facts)
        if graphs and library != "pycuda":
            assert facts["no_graphs"] is None
            assert len(facts["graphs"]) == 3
        # an array of the session's own library, as somebody else's
        x = normalize(batches[2], session.spec.preprocess).numpy()
        with device.current():
            stream = device.stream()
            memory, host = device.allocate(x.nbytes, stream), device.pinned(x.nbytes)
            host.array[:] = x.reshape(-1).view(np.uint8)
            device.copy(memory, host, x.nbytes, stream)
            images = DeviceArray(device, memory, x.shape, x.dtype, stream, device.record(stream))
        for where in (None, stream.handle):
            labels = session.run_device(images, where)
            assert wrong([labels.numpy()], [truth[2]]) <= LIMIT
        if library == "torch":
            tensor = torch.from_dlpack(labels)
            assert tensor.is_cuda
            assert wrong([tensor.cpu().numpy()], [truth[2]]) <= LIMIT
            assert torch.equal(torch.as_tensor(labels, device="cuda"), tensor)
            ours = session.run_device(torch.from_numpy(x).cuda(), torch.cuda.current_stream())
            assert torch.equal(torch.from_dlpack(ours), tensor)


def test_a_session_gives_the_gpus_memory_back(plan):
    images = pictures(2, H, W)
    open_session(plan, threads=1).close()
    used = []
    for _ in range(3):
        with open_session(plan, threads=1) as session:
            for _ in range(3):
                session(images)
            list(session.stream(images))
            memory = session.describe()["memory"]
            used.append(memory["total"] - memory["free"])
    assert used[2] <= used[1]
