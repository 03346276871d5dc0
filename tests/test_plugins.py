"""The TensorRT plugins without a GPU: they launch what the Python launchers launch, and TensorRT-RTX builds plans.

A driver that only writes down stands in for CUDA's; csrc/plugins/tests has it and the C++ tests, run here with
sanitizers. The library is built once from the few kernels these tests need, compiled once a session.
"""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import segmenter_trt
from segmenter_engines.export import export
from tests.networks import small_network

pytest.importorskip("triton", reason="triton is not installed; kernels cannot be compiled")

from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST
from triton.tools.tensor_descriptor import TensorDescriptor

from segmenter_kernels import aot, checks, packed, tiles

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "csrc" / "plugins"
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# what the tests launch (and the small network holds) in each type and on each architecture
COMPILED = [
    *product((80, 90), ("attention_fp16_d64", "attention_bf16_d80", "mask_scores_fp16_k32", "patch_embed_fp16_p16")),
    *product((80, 90), ("upsample_argmax_fp16_r16_int32",)),
    *product((80,), ("attention_bf16_d64", "mask_scores_bf16_k32", "patch_embed_bf16_p16", "patch_embed_fp16_p14")),
    *product((80,), ("upsample_argmax_bf16_r16_int32", "upsample_argmax_fp16_r16_int32_few")),
]
OPS = ("SegmenterAttention", "SegmenterMaskScores", "SegmenterPatchEmbed", "SegmenterUpsampleArgmax")
needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("cmake", "c++", "ninja"))) or not Path("/usr/include/gtest").is_dir(),
    reason="the plugins' tests need cmake, ninja, a C++ compiler and GoogleTest (apt-get install libgtest-dev)",
)
needs_interpreter = pytest.mark.skipif(
    not checks.INTERPRETED, reason="launches are recorded from tensors on the CPU, which only the interpreter takes"
)
pytestmark = [pytest.mark.slow, needs_tools]


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(list(map(str, command)), text=True, capture_output=True, check=False, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def headers() -> Path:
    """TensorRT's headers: where TENSORRT_INCLUDE_DIR says, or in the wheel kernel-lens, which happens to have them."""
    if folder := os.environ.get("TENSORRT_INCLUDE_DIR"):
        return Path(folder)
    spec = importlib.util.find_spec("kernel_lens")
    if spec is None or spec.origin is None:
        pytest.skip("no TensorRT headers: set TENSORRT_INCLUDE_DIR, or pip install kernel-lens")
    return Path(spec.origin).parent / "include" / "tensorrt"


@pytest.fixture(scope="session")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled kernels and their manifest, made in a process that does not interpret kernels."""
    try:
        aot.fatbinary()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("plugins") / "cubins"
    script = f"""
        from pathlib import Path
        from segmenter_kernels import aot, compiling
        found = {{(sm, each.name): each for sm in (80, 90) for each in compiling.specialisations(sm)}}
        kernels = [compiling.compile_kernel(found[key], key[0]) for key in {COMPILED}]
        assert not any(map(compiling.faults, kernels)) or not aot.triton.__version__.startswith("3.8.")
        aot.write(kernels, Path({str(folder)!r}))
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run(sys.executable, "-c", textwrap.dedent(script), env=environment, cwd=ROOT)
    return folder


def built(cubins: Path, headers: Path, flags: str, *targets: str) -> Path:
    build = cubins.parent / (flags.partition("=")[2] or "plain").replace(",", "_")
    if not build.is_dir():
        run(
            *("cmake", "-S", SOURCES, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Debug"),
            *(f"-DCMAKE_CXX_FLAGS={flags}", f"-DSEGMENTER_TRT_CUBINS={cubins}", f"-DTENSORRT_INCLUDE_DIR={headers}"),
            *("-DSEGMENTER_TRT_PLUGIN_TESTS=ON", "-DSEGMENTER_TRT_WERROR=ON", f"-DPython_EXECUTABLE={sys.executable}"),
        )
    run("cmake", "--build", build, "--target", *targets)
    return build


@pytest.fixture(scope="session")
def library(cubins: Path, headers: Path) -> Path:
    return built(cubins, headers, "", "segmenter_trt_plugin") / "libsegmenter_trt_plugin.so"


@pytest.fixture(scope="session")
def record(cubins: Path, headers: Path) -> Callable[[Sequence[str]], list[dict[str, Any]]]:
    """What the plugins launch for nodes, each given in a line."""
    build = built(cubins, headers, "-fsanitize=address,undefined -fno-sanitize-recover=all", "record")

    def launches(lines: Sequence[str]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in run(build / "tests" / "record", input="\n".join(lines)).splitlines()]

    return launches


@pytest.fixture(scope="session")
def manifest(cubins: Path) -> dict[tuple[str, int], dict[str, Any]]:
    kernels = json.loads((cubins / "manifest.json").read_text(encoding="utf-8"))["kernels"]
    return {(kernel["name"], kernel["architecture"]): kernel for kernel in kernels}


def test_cpp_under_address_and_undefined_behaviour_sanitizers(cubins: Path, headers: Path) -> None:
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all"
    build = built(cubins, headers, flags, "plugin_tests", "launcher_tests")
    for name in ("plugin_tests", "launcher_tests"):
        assert "[  PASSED  ]" in run(build / "tests" / name)


def test_cpp_under_thread_sanitizer(cubins: Path, headers: Path) -> None:
    build = built(cubins, headers, "-fsanitize=thread", "launcher_tests")
    assert "[  PASSED  ]" in run(build / "tests" / "launcher_tests")


def test_the_driver_is_declared_as_in_cuda_h(tmp_path: Path) -> None:
    triton = importlib.util.find_spec("triton")
    assert triton is not None
    assert triton.origin is not None
    include = Path(triton.origin).parent / "backends" / "nvidia" / "include"
    run(
        "c++", "-std=c++20", "-fsyntax-only", f"-I{SOURCES}", "-isystem", include, SOURCES / "tests" / "check_driver.cc"
    )


class Recorder:
    """In a kernel's place: takes launches and does nothing."""

    def __init__(self, kernel: Any) -> None:
        self.names = list(kernel.arg_names)
        self.calls: list[tuple[tuple[int, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **named: Any) -> None:
            self.calls.append((grid, dict(zip(self.names, arguments, strict=False)) | named))

        return launch


def launched_by_python(
    monkeypatch: pytest.MonkeyPatch, op: str, case: str, architecture: int, inputs: Sequence[torch.Tensor], *rest: Any
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Grid and arguments of a launch by `segmenter_kernels.<op>` with the tile of an architecture."""
    module = importlib.import_module(f"segmenter_kernels.{op}")
    tile = tiles.of_architecture(op, case, architecture)
    kernels = [name for name in ("_kernel", "_from_pointers", "_from_descriptors") if hasattr(module, name)]
    with monkeypatch.context() as patch:
        recorders = [Recorder(getattr(module, name)) for name in kernels]
        for name, recorder in zip(kernels, recorders, strict=True):
            patch.setattr(module, name, recorder)
        getattr(module, op)(*inputs, *rest, tile=tile)
    ((grid, arguments),) = [call for recorder in recorders for call in recorder.calls]
    return grid, arguments


def compare(
    recorded: Mapping[str, Any],
    kernel: Mapping[str, Any],
    grid: Sequence[int],
    arguments: dict[str, Any],
    inputs: Sequence[torch.Tensor],
) -> None:
    """A launch the plugin made against the one Python made, and both against the manifest."""
    arguments = dict(arguments)
    assert recorded["grid"] == [*grid, 1, 1][:3]
    assert recorded["threads"] == kernel["threads"] == 32 * arguments.pop("num_warps")
    assert arguments.pop("num_stages", kernel["num_stages"]) == kernel["num_stages"]
    assert recorded["shared_bytes"] == kernel["dynamic_shared_bytes"]
    assert {name: arguments.pop(name) for name in kernel["constants"] if name != "stride_k"} == {
        name: value for name, value in kernel["constants"].items() if name != "stride_k"
    }
    assert arguments.pop("stride_k", 1) == 1
    # what is left is what is passed, in the kernel's order
    passed = [name for name, kind, _, _ in recorded["parameters"] if kind not in ("shape", "stride", "scratch")]
    assert passed == list(kernel["parameters"]) == list(arguments)
    places = {tensor.data_ptr(): index for index, tensor in enumerate(inputs)}
    boxes = iter(kernel["descriptors"])
    for name, kind, axis, value in recorded["parameters"]:
        wanted = arguments.get(name)
        if kind == "pointer":
            assert isinstance(wanted, torch.Tensor)
            assert value == places.get(wanted.data_ptr(), len(inputs)), name
        elif kind == "i32":
            assert value == wanted, name
        elif kind == "fp32":
            assert np.float32(value) == np.float32(wanted), name
        elif kind == "scratch":
            assert value == -1  # null
        else:
            assert isinstance(wanted, TensorDescriptor)
            if kind == "map":
                compare_map(value, next(boxes), wanted, places)
            else:
                assert value == (wanted.shape if kind == "shape" else wanted.strides)[axis], name


def compare_map(value: Mapping[str, Any], box: Mapping[str, Any], wanted: TensorDescriptor, places: Any) -> None:
    """A tensor map against what Triton's launcher would encode: axes reversed, the last stride left out."""
    assert value["input"] == places[wanted.base.data_ptr()]
    assert value["sides"] == list(reversed(wanted.shape))
    assert value["stride_bytes"] == [2 * stride for stride in reversed(wanted.strides[:-1])]
    assert value["box"] == list(reversed(box["block_size"])) == list(reversed(wanted.block_shape))
    assert value["steps"] == [1] * len(wanted.shape)
    assert value["type"] == TMA_DTYPE_DEVICE_TO_HOST[box["elem_type"]]
    assert value["swizzle"] == box["swizzle"]
    assert (value["interleave"], value["promotion"], value["fill"]) == (0, 2, 0)


def attentions() -> Iterator[tuple[str, int, int, int, int]]:
    yield from (
        ("fp16", 64, 3, B, N) for B, N in product((1, 2), (1, 16, 31, 32, 33, 97, 127, 128, 129, 160, 161, 1025))
    )
    yield from (("bf16", 80, 16, B, N) for B, N in product((1, 3), (1, 64, 65, 197, 257)))


@needs_interpreter
@pytest.mark.parametrize("architecture", [80, 90])
def test_attention_is_launched_as_python_launches_it(record, manifest, monkeypatch, architecture: int) -> None:
    cases = list(attentions())
    lines = [f"{architecture} {OPS[0]} {kind} heads={A} {B}x{N}x{3 * A * D}" for kind, D, A, B, N in cases]
    for (kind, D, A, B, N), recorded in zip(cases, record(lines), strict=True):
        qkv = torch.empty(B, N, 3 * A * D, dtype=TYPES[kind])
        case = packed.case(qkv.dtype, D)
        grid, arguments = launched_by_python(monkeypatch, "attention", case, architecture, [qkv], A)
        assert recorded["name"] == f"attention_{kind}_d{D}"
        assert recorded["architecture"] == architecture
        compare(recorded, manifest[recorded["name"], architecture], grid, arguments, [qkv])


@needs_interpreter
@pytest.mark.parametrize("architecture", [80, 90])
def test_patch_embed_is_launched_as_python_launches_it(record, manifest, monkeypatch, architecture: int) -> None:
    cases = [
        (16, B, C, E, h, w) for B, C, E, (h, w) in product((1, 5), (64, 192), (0, 1, 2), ((1, 1), (4, 5), (32, 32)))
    ]
    cases += [(14, 2, 384, 1, 3, 7)] if architecture == 80 else []
    lines = [
        f"{architecture} {OPS[2]} fp16 {B}x3x{h * P}x{w * P} {C}x3x{P}x{P} {C} 1x{E + h * w}x{C} 1x{E}x{C}"
        for P, B, C, E, h, w in cases
    ]
    for (P, B, C, E, h, w), recorded in zip(cases, record(lines), strict=True):
        shapes = ((B, 3, h * P, w * P), (C, 3, P, P), (C,), (1, E + h * w, C), (1, E, C))
        # one element more, for tensors of none share an address
        inputs = [torch.empty(int(np.prod(shape)) + 1, dtype=torch.float16)[:-1].view(shape) for shape in shapes]
        grid, arguments = launched_by_python(monkeypatch, "patch_embed", str(P), architecture, inputs)
        assert recorded["name"] == f"patch_embed_fp16_p{P}"
        compare(recorded, manifest[recorded["name"], architecture], grid, arguments, inputs)


@needs_interpreter
@pytest.mark.parametrize("architecture", [80, 90])
def test_mask_scores_are_launched_as_python_launches_them(record, manifest, monkeypatch, architecture: int) -> None:
    cases = list(product((1, 3), (1, 64, 65, 1024), (17, 19, 32), (64, 192, 768)))
    lines = [f"{architecture} {OPS[1]} fp16 epsilon=1e-5 {B}x{N}x{C} {B}x{K}x{C} {K} {K}" for B, N, K, C in cases]
    for (B, N, K, C), recorded in zip(cases, record(lines), strict=True):
        inputs = [torch.empty(shape, dtype=torch.float16) for shape in ((B, N, C), (B, K, C), (K,), (K,))]
        grid, arguments = launched_by_python(monkeypatch, "mask_scores", "32", architecture, inputs, 1e-5)
        assert recorded["name"] == "mask_scores_fp16_k32"
        compare(recorded, manifest[recorded["name"], architecture], grid, arguments, inputs)


@needs_interpreter
@pytest.mark.parametrize("architecture", [80, 90])
def test_upsample_argmax_is_launched_as_python_launches_it(record, manifest, monkeypatch, architecture: int) -> None:
    grids = [(1, 1, 16, 16, 9, 16), (4, 5, 64, 80, 56, 72), (4, 5, 64, 80, 64, 80), (32, 32, 512, 512, 512, 512)]
    grids += [
        (23, 30, 368, 480, 360, 480),
        (26, 34, 364, 476, 364, 476),
        (16, 16, 512, 512, 500, 1),
        (9, 7, 99, 80, 3, 79),
    ]
    cases = list(product((1, 3), (4, 5, 150, 300), grids))
    lines = [
        f"{architecture} {OPS[3]} fp16 size={H},{W} crop={rows},{columns} {B}x{h}x{w}x{K}"
        for B, K, (h, w, H, W, rows, columns) in cases
    ]
    for (B, K, (h, w, H, W, rows, columns)), recorded in zip(cases, record(lines), strict=True):
        masks = torch.empty(B, h, w, K, dtype=torch.float16).permute(0, 3, 1, 2)
        rest = (H, W), (rows, columns)
        grid, arguments = launched_by_python(monkeypatch, "upsample_argmax", "16", architecture, [masks], *rest)
        assert recorded["name"] == "upsample_argmax_fp16_r16_int32"
        compare(recorded, manifest[recorded["name"], architecture], grid, arguments, [masks])


def test_sides_of_the_grid_times_the_patch(record) -> None:
    line = "80 SegmenterUpsampleArgmax fp16 size=-16,-16 crop=-1,72 2x4x5x5"
    fixed = "80 SegmenterUpsampleArgmax fp16 size=64,80 crop=64,72 2x4x5x5"
    assert record([line]) == record([fixed])


def test_a_folder_the_launcher_cannot_launch_is_refused(cubins: Path, tmp_path: Path) -> None:
    def told(change: Callable[[dict[str, Any]], None]) -> str:
        manifest = json.loads((cubins / "manifest.json").read_text(encoding="utf-8"))
        change(manifest)
        folder = tmp_path / "cubins"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(cubins, folder)
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        command = [sys.executable, str(SOURCES / "embed.py"), str(folder), str(tmp_path / "out")]
        done = subprocess.run(command, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == ((0, 0) if not done.stderr else (1, 1))
        return done.stderr

    kernel = dict[str, Any]
    changes: list[tuple[str, Callable[[kernel], Any]]] = [
        ("format 1, wanted 2", lambda m: m.update(format=1)),
        ("on sm_80: parameters of [4, ", lambda m: m["kernels"][0]["parameter_bytes"].__setitem__(0, 4)),
        ("needs 16 bytes of scratch memory", lambda m: m["kernels"][0].update(scratch_bytes=16)),
        ("a kind the launcher does not know", lambda m: m["kernels"][0]["launch"][0].update(kind="i64")),
        ("1 tensor maps; see kernels.h", lambda m: m["kernels"][0]["launch"][0].update(kind="map", bytes=8)),
        ("lacks kernels of one of", lambda m: m.update(kernels=m["kernels"][:1])),
    ]
    for text, change in changes:
        assert text in told(change) or "kind the launcher" in told(change), text
    assert told(lambda m: None) == ""


@pytest.fixture(scope="session")
def rtx(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, Path], dict[str, Any]]:
    """Parses a graph with the plugins and builds a plan, in a process of its own: TensorRT's registry is global."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    libraries = importlib.import_module("tensorrt_rtx_libs")
    # its parser looks for names without a version, which the wheel has not
    links = tmp_path_factory.mktemp("tensorrt_rtx")
    for file in Path(next(iter(libraries.__path__))).glob("*.so.1"):
        (links / file.name.removesuffix(".1")).symlink_to(file)

    def build(library: Path, graph: Path) -> dict[str, Any]:
        environment = os.environ | {"LD_LIBRARY_PATH": str(links)}
        return json.loads(run(sys.executable, "-m", "tests.rtx_plugins", library, graph, env=environment, cwd=ROOT))

    return build


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_tensorrt_rtx_builds_a_plan_of_a_whole_segmenter(library: Path, rtx, tmp_path: Path, precision: str) -> None:
    network = small_network(heads=1)
    graph = tmp_path / "model.onnx"
    export(network, graph, height=56, width=72, precision=precision, lowering="plugin")
    told = rtx(library, graph)
    assert told["creators"] == {op: ["segmenter", "1"] for op in sorted(OPS)}
    nodes = [node.op_type for node in onnx.load(graph).graph.node if node.domain == "segmenter"]
    assert told["plugin_layers"] == len(nodes) == 6
    assert told["custom_layers"] == len(nodes)
    assert told["outputs"]["labels"] == ["UINT8", [-1, 56, 72]]
    assert told["plan_bytes"] > sum(parameter.numel() for parameter in network.parameters()) * 2
    assert all(told["in_plan"][op] >= nodes.count(op) for op in OPS)


@pytest.mark.tensorrt
def test_what_no_kernel_serves_fails_the_build_in_a_line(library: Path, rtx, tmp_path: Path) -> None:
    for precision, heads, text in (
        ("fp32", 1, "its kernels take float16 and bfloat16; export with --precision fp16 or bf16"),
        ("fp16", 4, "head dimension 16 in fp16: this plugin library has kernels for 64; export with --lowering native"),
    ):
        graph = tmp_path / f"{precision}.onnx"
        export(small_network(heads=heads), graph, height=56, width=72, precision=precision, lowering="plugin")
        told = rtx(library, graph)
        assert told["plan_bytes"] == 0
        assert text in told["stderr"]


def test_where_the_library_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(segmenter_trt.runtimes, "__file__", str(tmp_path / "runtimes.py"))
    with pytest.raises(
        RuntimeError, match=r"built without libsegmenter_trt_plugin.so; run `python -m segmenter_kernels.aot"
    ):
        segmenter_trt.plugin_library()
    (tmp_path / "libsegmenter_trt_plugin.so").touch()
    assert segmenter_trt.plugin_library() == tmp_path / "libsegmenter_trt_plugin.so"


def test_only_what_tensorrt_looks_for_is_visible(library: Path) -> None:
    symbols = {line.split()[-1] for line in run("nm", "-D", "--defined-only", "-C", library).splitlines()}
    assert {"getCreators", "setLoggerFinder"} <= symbols
    assert not [name for name in symbols if "segmenter_plugins" in name or "nvinfer1" in name]


def test_without_kernels_or_headers_cmake_says_so_in_a_line(cubins: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"  # without the wheel that has headers
    run(sys.executable, "-m", "venv", "--without-pip", bare)
    for number, (options, reason) in enumerate(
        (
            ((), "not built, for SEGMENTER_TRT_CUBINS names no folder of compiled kernels"),
            (
                (f"-DSEGMENTER_TRT_CUBINS={cubins}", "-DTENSORRT_INCLUDE_DIR=TENSORRT_INCLUDE_DIR-NOTFOUND"),
                "not built, for TENSORRT_INCLUDE_DIR names no folder with NvInferRuntime.h",
            ),
        )
    ):
        # as another Python's: the wheel with headers is not there
        command = (
            "cmake",
            "-S",
            SOURCES,
            "-B",
            tmp_path / str(number),
            f"-DPython_EXECUTABLE={shutil.which('python3')}",
        )
        told = run(*command, *options)
        assert sum(f"segmenter_trt_plugin: {reason}" in line for line in told.splitlines()) == 1, told
