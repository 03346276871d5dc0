"""The `triton` engine: a small trained network on real images, labelled as PyTorch labels them in fp32."""

import warnings
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segmenter.checkpoint import load_model, save_model
from segmenter.config import IMAGENET, VARIANTS, variant
from segmenter.datasets import Sample, SegmentationDataset, open_dataset
from segmenter.datasets.fitted import Fitted
from segmenter.decoder import MaskDecoder
from segmenter.errors import EngineError, Unavailable
from segmenter.model import Segmenter
from segmenter.preprocess import normalize
from segmenter.window import segment
from segmenter_engines import Session, open_session
from segmenter_engines.limits import LIMITS
from segmenter_engines.sessions import triton as module
from segmenter_kernels.checks import INTERPRETED
from tests.kernels.conftest import DEVICE
from tests.networks import rotary_network, small_config, small_network

SIZE = (96, 128)
TRAINING_STEPS = 60
PAPER_SIZE = (256, 256)  # of the paper's networks here: time for all of them, patches of 32 for the coarsest
PAPER_STEPS, PAPER_SHARE = 300, 0.8  # at most, of their pixels right


def camvid(shared: Path, split: str) -> SegmentationDataset:
    return open_dataset("camvid", shared / "data" / "camvid", split)


def fit(network: Segmenter, shared: Path, rate: float, steps: int, device: str = "cpu", enough: float = 1.0) -> float:
    """Train for seconds, at most till a share of its pixels is labelled right: of near ties 16 bits decide nothing.

    Returns the share it came to.
    """
    dataset, config = camvid(shared, "train"), network.config
    samples = [Fitted(dataset, config.encoder.image_size)[index] for index in range(0, 64, 8)]
    images = normalize(np.stack([sample.image for sample in samples]), config.preprocess).to(device)
    truth = torch.from_numpy(np.stack([sample.labels for sample in samples]).astype(np.int64)).to(device)
    optimizer = torch.optim.AdamW(network.to(device).parameters(), rate)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10)
    for _ in range(steps):
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            logits = network(images).float()
        loss, judged = F.cross_entropy(logits, truth, ignore_index=dataset.ignore), truth != dataset.ignore
        share = float((logits.argmax(1) == truth)[judged].float().mean())
        if share > enough:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm.step()
    network.eval()
    return share


def real_images(shared: Path, size: tuple[int, int]) -> list[Sample]:
    samples = Fitted(camvid(shared, "val"), size)
    return [samples[index] for index in range(0, 9, 3)]


@pytest.fixture(scope="module")
def validation(shared: Path) -> list[Sample]:
    return real_images(shared, SIZE)


@pytest.fixture(scope="module")
def checkpoint(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    classes = camvid(shared, "train").classes
    config = small_config(classes=classes, image_size=SIZE, drop_path=0.0, distilled=True)
    folder = tmp_path_factory.mktemp("trained")
    network = Segmenter(replace(config, preprocess=IMAGENET))
    fit(network, shared, 3e-3, TRAINING_STEPS)
    save_model(network, folder)
    return folder


@pytest.fixture(scope="module")
def eager(checkpoint: Path) -> Session:
    return open_session(checkpoint, "eager", threads=1)


@pytest.mark.parametrize(
    ("precision", "wanted"),
    [("fp16", 0.999), *((name, 1 - LIMITS[name].disagreement) for name in ("bf16", "int8", "fp8"))],
)
def test_real_images_are_labelled_as_in_fp32(
    checkpoint: Path, eager: Session, validation: list[Sample], precision: str, wanted: float
) -> None:
    images = np.stack([sample.image for sample in validation])
    truth = eager(images)
    assert len(np.unique(truth)) > 2
    with open_session(checkpoint, "triton", threads=1, precision=precision) as session:
        assert session.name == f"triton-{precision}"
        labels = session(images)
        assert labels.dtype == np.uint8
        assert (labels == truth).mean() >= wanted
        # other batch sizes take other products
        assert (session(images[0]) != labels[0]).mean() <= LIMITS[precision].rows


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device: the interpreter would take days")
@pytest.mark.parametrize("name", VARIANTS)
def test_every_network_of_the_paper_labels_real_images_as_in_fp32(shared: Path, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network = Segmenter(variant(name, camvid(shared, "train").classes, image_size=PAPER_SIZE, drop_path=0.0))
    if isinstance(network.decoder, MaskDecoder):
        network.decoder.cls_emb.data.mul_(50)  # classes that differ from the start are learnt in fewer steps
    share = fit(network, shared, 0.2 / network.config.encoder.width, PAPER_STEPS, DEVICE, PAPER_SHARE)
    save_model(network, tmp_path / "checkpoint")
    images = np.stack([sample.image for sample in real_images(shared, PAPER_SIZE)])
    x = normalize(images, network.config.preprocess).to(DEVICE)
    with torch.inference_mode():
        truth = network.labels(x).cpu().numpy()
        own = float((network.half().labels(x.half()).cpu().numpy() == truth).mean())
    with open_session(tmp_path / "checkpoint", "triton", threads=1) as session:
        agreement = float((session(images) == truth).mean())
    agreed = f"{agreement:.5f} of {truth.size} pixels, PyTorch {own:.5f}"
    print(f"{name}: {agreed}, {len(np.unique(truth))} classes, {share:.2f} of its training pixels right")
    assert len(np.unique(truth)) > 2
    assert agreement >= 0.999


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_rotary_positions(tmp_path: Path, precision: str) -> None:
    network = rotary_network()
    save_model(network, tmp_path / "checkpoint")
    image = np.random.default_rng(0).integers(0, 256, (40, 72, 3), dtype=np.uint8)
    x = normalize(image, network.config.preprocess)
    with torch.inference_mode():
        truth = network.double()(x.double())
        own = network.half()(x.half()).double() - truth
    with open_session(tmp_path / "checkpoint", "triton", threads=1, precision=precision) as session:
        error = torch.from_numpy(session.logits(image)).double() - truth
    if precision == "fp16":
        assert error.norm() <= 2 * own.norm()
    else:
        # 41 dB of 255 steps over +-4 sigma, less those of 6 layers' inputs and weights, and the worth of a bit
        assert 20 * torch.log10(truth.norm() / error.norm()) > 41 - 11 - 6


def test_sides_that_are_no_multiples_of_the_patch(checkpoint: Path, eager: Session, validation: list[Sample]) -> None:
    image = validation[0].image[:85, :119]
    with open_session(checkpoint, "triton", threads=1) as session:
        labels = session(image)
        assert labels.shape == (85, 119)
        assert (labels == eager(image)).mean() >= 0.999
        logits = session.logits(image)
    truth = eager.logits(image)
    assert np.square(logits - truth).sum() <= 1e-4 * np.square(truth).sum()


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [((64, 72), 48, 32), ((50, 61), 44, 44), ((30, 41), 48, 0)],
    ids=["overlapping", "of no whole patch", "smaller than the window"],
)
def test_windows_are_merged_as_evaluation_merges_them(
    checkpoint: Path, eager: Session, validation: list[Sample], size: tuple[int, int], window: int, stride: int
) -> None:
    image = validation[0].image[20 : 20 + size[0], 30 : 30 + size[1]]
    view = normalize(image, IMAGENET)
    shares = segment(eager.network, [(view, False)], size, window, stride or window, window_batch=2)
    truth, (first, second) = shares.argmax(0), shares.topk(2, dim=0).values
    assert len(truth.unique()) > 1
    with open_session(checkpoint, "triton", threads=1) as session:
        assert isinstance(session, module.TritonSession)
        labels = session.sliding_window(image, window=window, stride=stride, batch=2)
        assert labels.dtype == np.uint8
        assert labels.shape == size
        # the networks differ by fp16, which decides ties alone; windows merged otherwise differ at their edges
        others = torch.from_numpy(labels) != truth
        assert others.float().mean() <= 0.005
        assert ((first - second)[others] < 1e-3).all()
        for wrong in ({"window": 0}, {"window": window, "stride": window + 1}, {"window": window, "batch": 0}):
            with pytest.raises(EngineError, match="wanted one image"):
                session.sliding_window(image, **wrong)
        with pytest.raises(EngineError, match="images are of type list"):
            session.sliding_window([0], window=window)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="this session is closed"):
        session.sliding_window(image, window=window)


def test_a_call_leaves_earlier_labels_alone(tmp_path: Path) -> None:
    save_model(small_network(layer_scale=True), tmp_path / "checkpoint")
    random = np.random.default_rng(0)
    with open_session(tmp_path / "checkpoint", "triton", threads=1) as session:
        first = session(random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        kept = first.copy()
        session(random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        assert np.array_equal(first, kept)
        assert session.describe()["precision"] == "fp16"
        with pytest.raises(EngineError, match="wanted uint8 RGB"):
            session(np.zeros((64, 64), np.uint8))


@pytest.mark.parametrize("count", [0, 3])
def test_a_stream_labels_as_calls_do_and_ends_with_the_error_of_its_images(tmp_path: Path, count: int) -> None:
    save_model(small_network(), tmp_path / "checkpoint")
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((32, 48), (2, 32, 32), (32, 48))]

    def source() -> Iterator[np.ndarray]:
        yield from images[:count]
        raise OSError("no such picture")

    with open_session(tmp_path / "checkpoint", "triton", threads=1) as session:
        labels = []
        with pytest.raises(OSError, match="no such picture"):
            labels.extend(session.stream(source()))
        assert len(labels) == count
        assert all(np.array_equal(one, session(image)) for one, image in zip(labels, images, strict=False))
        with pytest.raises(EngineError, match="wanted uint8 RGB"):
            labels.extend(session.stream([images[0], images[0][..., :2]]))
        assert len(labels) == count + 1
    with pytest.raises(EngineError, match="this session is closed"):
        list(session.stream([]))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device: in Triton's interpreter streams are calls")
def test_a_stream_of_many_batches_labels_as_calls_do(tmp_path: Path) -> None:
    save_model(small_network(), tmp_path / "checkpoint")
    random = np.random.default_rng(0)
    shapes = [(8, 512, 512, 3), (3, 320, 480, 3)]  # several pieces of an upload, and a part of one
    images = [random.integers(0, 256, shapes[turn // 3 % 2], dtype=np.uint8) for turn in range(20)]
    with open_session(tmp_path / "checkpoint", "triton") as session:
        for _ in range(2):  # in the first the graphs are captured
            streamed = list(session.stream(images))
            assert len(streamed) == len(images)
            assert all(np.array_equal(labels, session(x)) for labels, x in zip(streamed, images, strict=True))
        for labels in session.stream(images):
            assert np.array_equal(labels, streamed[0])
            break
        assert np.array_equal(session(images[1]), streamed[1])
        left = session.stream(images)
        next(left)
    with pytest.raises(EngineError, match="this session is closed"):
        next(left)


def test_closing_gives_back_the_network_at_once(tmp_path: Path) -> None:
    save_model(small_network(), tmp_path / "checkpoint")
    with open_session(tmp_path / "checkpoint", "triton", threads=1) as session:
        assert isinstance(session, module.TritonSession)
        network = weakref.ref(session._model)
    assert network() is None
    session.close()


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device: there are no graphs in Triton's interpreter")
def test_graphs_of_many_shapes_come_and_go(tmp_path: Path) -> None:
    save_model(small_network(), tmp_path / "checkpoint")
    random = np.random.default_rng(0)
    with open_session(tmp_path / "checkpoint", "triton") as session:
        images = [random.integers(0, 256, (1, 32, 16 * side, 3), dtype=np.uint8) for side in range(1, 12)]
        first = [session(image) for image in images]
        assert len(session._run._captured) == 8
        again = [session(image) for image in images]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter, about the NaN
@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
@pytest.mark.parametrize("layer", ["encoder.norm", "encoder.blocks.0.mlp.fc1"])
def test_scores_that_are_no_numbers_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, layer: str
) -> None:
    def broken(path: Path, **options: Any) -> Segmenter:
        """As the reader of checkpoints would not let it through."""
        network = load_model(path, **options)
        with torch.no_grad():
            network.get_parameter(f"{layer}.weight").view(-1)[0] = float("nan")
        return network

    monkeypatch.setattr(module, "load_model", broken)
    save_model(small_network(), tmp_path / "checkpoint")
    with (
        open_session(tmp_path / "checkpoint", "triton", threads=1, precision=precision) as session,
        pytest.raises(EngineError, match=f"triton-{precision}, small: scores that are no numbers"),
    ):
        session(np.zeros((64, 64, 3), np.uint8))


def test_what_cannot_be_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(small_network(), tmp_path / "checkpoint")
    with pytest.raises(EngineError, match="precision 'fp4': triton knows fp16, bf16, int8, fp8"):
        open_session(tmp_path / "checkpoint", "triton", precision="fp4")
    monkeypatch.setattr(module, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unavailable, match="engine triton: no CUDA device here"):
        open_session(tmp_path / "checkpoint", "triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(module.tiles, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(Unavailable, match=r"engine triton: GPU of compute capability 7\.5"):
        open_session(tmp_path / "checkpoint", "triton")


@pytest.mark.parametrize(
    ("version", "capability", "told"),
    [
        ("3.6.0", (9, 0), True),
        ("3.7.0", (9, 0), True),
        ("3.7.1", (9, 0), False),
        ("3.10.0+git1", (9, 0), False),
        ("3.6.0", (8, 0), False),
        ("3.6.0", (10, 0), False),
    ],
)
def test_a_triton_that_leaves_out_fences_is_told_on_hopper(
    version: str, capability: tuple[int, int], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (module, module.tiles):
        monkeypatch.setattr(place, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("triton.__version__", version)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        # with its number: another thread may have another current one
        assert module._device("fp16") == torch.device("cuda", 1)
    assert [f"Triton {version} leaves out fences" in str(each.message) for each in found] == [True] * told
