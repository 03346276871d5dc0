"""Fixtures many tests share: a tiny network, a small dataset on disk, and the real data where there are any."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segmenter.config import DecoderConfig, EncoderConfig, SegmenterConfig
from segmenter.model import Segmenter
from tests.once import once

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell's job in the background does not hear Ctrl-C, and what tests start would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available() and not os.environ.get("EMULATE"):
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported, which no module above does

CLASSES = ("ground", "wall", "sky")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images, golden outputs and backbone weights beside a checkout; tests of real data need it."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder of real data and golden outputs named 'shared' beside this checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_config() -> SegmenterConfig:
    """A Segmenter of 2 + 1 layers and patch 8, quick enough for a unit test, with the classes of `picture_root`."""
    return SegmenterConfig(
        encoder=EncoderConfig(patch_size=8, image_size=(32, 32), width=32, depth=2, heads=2, mlp_width=64),
        decoder=DecoderConfig(width=32, depth=1, heads=2, mlp_width=64),
        classes=CLASSES,
        name="tiny",
    )


@pytest.fixture
def tiny_model(tiny_config: SegmenterConfig) -> Segmenter:
    """A seeded random network of `tiny_config`, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Segmenter(tiny_config).eval()


@pytest.fixture
def picture_root(tmp_path: Path) -> Path:
    """A dataset in the `folder` layout: 3 training and 2 validation pictures of 40x56, three classes, some void."""
    root = tmp_path / "pictures"
    random = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = np.repeat(random.integers(0, 3, (5, 7), dtype=np.uint8), 8, axis=0).repeat(8, axis=1)
            image = (mask[..., None] * 80 + random.integers(0, 60, (40, 56, 3))).astype(np.uint8)
            mask[:2] = 255
            Image.fromarray(image).save(root / "images" / split / f"p{index}.{'jpg' if index == 0 else 'png'}")
            Image.fromarray(mask).save(root / "masks" / split / f"p{index}.png")
    (root / "classes.txt").write_text(
        "# name, R, G, B\nground, 120, 90, 60\nwall\nsky, 90, 160, 230\n", encoding="utf-8"
    )
    return root


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a small network and every graph made from it, once for all tests: to be read, not changed."""
    from tests.small_engines import fill

    return once(tmp_path_factory, "engines", fill)


@pytest.fixture(scope="session")
def cpp_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build folder of the C++ library with its tests and programs, once for all tests that need one."""
    from tests.cpp_build import UNITY, build

    return once(tmp_path_factory, "cpp", lambda folder: build(folder, *UNITY))


@pytest.fixture(scope="module")
def backend_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stand-in for TensorRT's backend; each module's own, as the stand-in counts what is alive."""
    from tests.trt_backend import compile_backend

    folder = tmp_path_factory.mktemp("backend")
    compile_backend(folder)
    return folder


@pytest.fixture(scope="session")
def ranged_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of the same network for a range of sizes, once for all tests: to be read, not changed."""
    from tests.small_engines import fill_ranged

    return once(tmp_path_factory, "ranged", fill_ranged)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of a network that takes next to no time, once for all tests: to be read, not changed."""
    from tests.small_engines import fill_tiny

    return once(tmp_path_factory, "tiny", fill_tiny) / "tiny.onnx"


@pytest.fixture(scope="module")
def reference(engine_folder: Path) -> Iterator[Any]:
    """The network of `engine_folder` in PyTorch."""
    from segmenter_engines import open_session

    with open_session(engine_folder / "checkpoint", "eager", threads=1) as session:
        yield session


@pytest.fixture(scope="session")
def sdk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of the installed C++ library, C library and command line tool.

    SEGMENTER_TRT_SDK names one that is there already, to be tested instead of one built here.
    """
    if ready := os.environ.get("SEGMENTER_TRT_SDK"):
        return Path(ready)
    from tests.sdk import install

    library: Path = request.getfixturevalue("cpp_library")
    return once(tmp_path_factory, "sdk", lambda prefix: install(library, prefix))


@pytest.fixture(scope="module")
def cli(sdk: Path, engine_folder: Path) -> Any:
    """Call segmenter_trt_cli with the small engine."""
    from segmenter_engines.folder import FP32
    from tests.sdk import call

    def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[Any]:
        return call(sdk / "bin" / "segmenter_trt_cli", engine_folder / FP32, *arguments, "--threads", "1", **options)

    return run


@pytest.fixture(scope="module")
def formats(cli: Any) -> set[str]:
    """What this build of segmenter_trt_cli reads, by its own word."""
    line = re.search(r"this build reads (.*)", cli("--help").stdout)
    assert line is not None
    return set(line.group(1).split(", "))
