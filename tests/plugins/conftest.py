"""What the plugins' tests share: compiled kernels, the library, and its programs with sanitizers."""

from pathlib import Path

import pytest

from tests.once import once
from tests.plugins.building import build, compile_kernels


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "kernels", compile_kernels)


@pytest.fixture(scope="session")
def cubins(kernels: Path) -> Path:
    """The kernels that the C++ tests know, and their manifest."""
    return kernels / "tested"


@pytest.fixture(scope="session")
def library(kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as it is deployed, with the kernels of 150 classes."""
    folder = once(
        tmp_path_factory, "plugins", lambda made: build(made, kernels / "deployed", "", "segmenter_trt_plugin")
    )
    return folder / "libsegmenter_trt_plugin.so"


@pytest.fixture(scope="session")
def address(cubins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs, with sanitizers of addresses and undefined behaviour."""
    flags, targets = (
        "-fsanitize=address,undefined -fno-sanitize-recover=all",
        ("plugin_tests", "launcher_tests", "record"),
    )
    return once(tmp_path_factory, "plugins_address", lambda made: build(made, cubins, flags, *targets)) / "tests"


@pytest.fixture(scope="session")
def thread(cubins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs, with the sanitizer of threads."""
    flags = "-fsanitize=thread"
    return once(tmp_path_factory, "plugins_thread", lambda made: build(made, cubins, flags, "launcher_tests")) / "tests"
