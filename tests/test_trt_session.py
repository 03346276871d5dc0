"""segmenter_trt's Engine and Session: the labels of the Python sessions, in anybody's memory, from any thread."""

import json
import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmenter.errors import EngineError
from segmenter_engines import open_session
from segmenter_engines.folder import FP16, FP32, INT8
from segmenter_engines.manifest import read_manifest
from segmenter_engines.sessions import open_engine
from segmenter_engines.verified import facts_digest
from tests.small_engines import TINY, H, W, change_manifest, pictures

segmenter_trt = pytest.importorskip("segmenter_trt", reason="segmenter_trt is not compiled; run pip install .")
pytest.importorskip("openvino", reason="openvino is not installed")


@pytest.fixture(scope="module")
def engine(engine_folder: Path) -> Any:
    return segmenter_trt.Engine(engine_folder / FP32, threads=1)


@pytest.fixture
def session(engine: Any) -> Any:
    return segmenter_trt.Session(engine)


def copied(artifact: Path, folder: Path, **changes: Any) -> Path:
    for name in (artifact.name, artifact.name + ".json"):
        shutil.copy(artifact.parent / name, folder / name)
    change_manifest(folder / artifact.name, **changes)
    return folder / artifact.name


@pytest.mark.parametrize("name", [FP32, INT8])
def test_labels_masks_and_logits_are_the_python_sessions(engine_folder: Path, name: str) -> None:
    images = pictures(3, seed=5)
    session = segmenter_trt.Session(segmenter_trt.Engine(engine_folder / name, threads=1))
    with open_engine(engine_folder / name, "openvino", threads=1) as python:
        np.testing.assert_array_equal(session.run(images), python(images))
        np.testing.assert_array_equal(session.run(images[0]), python(images[0]))
        scale, shift = python._scale, python._shift
        normalized = segmenter_trt.normalize(images, scale, shift)
        masks = python.masks(normalized)
    np.testing.assert_array_equal(session.masks(images), masks)
    np.testing.assert_array_equal(session.masks(normalized), masks)
    np.testing.assert_array_equal(session.masks(normalized[1]), session.masks(images[1]))
    logits = session.logits(images)
    assert (logits.dtype, logits.shape) == (np.float32, (3, 5, H, W))
    np.testing.assert_array_equal(logits.argmax(1), session.run(images))
    np.testing.assert_array_equal(session.logits(images[2]), session.logits(images)[2])


def test_windows_side_by_side_are_images_of_their_own(session: Any, tmp_path: Path, tiny: Path) -> None:
    session = segmenter_trt.Session(segmenter_trt.Engine(tiny, threads=1))
    image = pictures(1, 2 * TINY, 3 * TINY, seed=7)[0]
    labels = session.sliding_window(image, window=TINY)
    for y in range(0, 2 * TINY, TINY):
        for x in range(0, 3 * TINY, TINY):
            part = np.ascontiguousarray(image[y : y + TINY, x : x + TINY])
            np.testing.assert_array_equal(labels[y : y + TINY, x : x + TINY], session.run(part))
    out = np.empty_like(labels)
    assert session.sliding_window(image, window=TINY, stride=TINY, batch=1, out=out) is out
    np.testing.assert_array_equal(out, labels)
    assert session.sliding_window(np.ascontiguousarray(image[:9, :50]), window=TINY, stride=16).shape == (9, 50)
    for bad in ({"window": TINY, "stride": TINY + 1}, {"window": 0}, {"window": TINY, "batch": 0}):
        with pytest.raises(segmenter_trt.InputError, match="wanted"):
            session.sliding_window(image, **bad)


def test_images_of_other_sizes_are_resized_first(session: Any, engine: Any) -> None:
    images = pictures(3, 48, 64, seed=8)
    resized = np.stack([segmenter_trt.resize(image, H, W) for image in images])
    wanted = session.run(resized)
    np.testing.assert_array_equal(session.run_resized(images), wanted)
    np.testing.assert_array_equal(session.run_resized(images[0], size=(H, W)), wanted[0])
    out = np.full((3, H, W), 99, np.uint8)
    assert session.run_resized(images, size=(H, W), out=out) is out
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_array_equal(session.run_resized(resized), wanted)
    for size in ((48, 64), (1 << 40, 1 << 40), (-1, W)):
        with pytest.raises(segmenter_trt.InputError, match=f"size {size[0]}x{size[1]}: this engine takes other sizes"):
            session.run_resized(images, size=size)
    assert (engine.describe()["windows_by"], engine.describe()["resized_by"]) == ("the CPU", "the CPU")


def test_more_images_than_an_engine_takes_go_in_several_calls(
    engine_folder: Path, tmp_path: Path, session: Any
) -> None:
    few = segmenter_trt.Session(
        segmenter_trt.Engine(copied(engine_folder / FP32, tmp_path, batch=[1, 1, 2]), threads=1)
    )
    images = pictures(5, seed=6)
    np.testing.assert_array_equal(few.run(images), session.run(images))
    np.testing.assert_array_equal(few.masks(images), session.masks(images))
    np.testing.assert_array_equal(few.logits(images), session.logits(images))


def test_engines_of_a_least_batch_take_any_number_above_it(engine_folder: Path, tmp_path: Path, session: Any) -> None:
    four = segmenter_trt.Session(
        segmenter_trt.Engine(copied(engine_folder / FP32, tmp_path, batch=[4, 4, 4]), threads=1)
    )
    for count in (4, 6, 9):
        images = pictures(count, seed=6)
        wanted = session.run(images)
        np.testing.assert_array_equal(four.run(images), wanted)
        np.testing.assert_array_equal(four.run_resized(images), wanted)
        np.testing.assert_array_equal(four.masks(images), session.masks(images))
    with pytest.raises(segmenter_trt.InputError, match="batch of 3: this engine takes at least 4"):
        four.run(images[:3])


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_scores_that_are_no_numbers_are_heard(session: Any, value: float) -> None:
    with pytest.raises(segmenter_trt.RunError, match="no numbers"):
        session.masks(np.full((3, H, W), value, np.float32))


def test_a_network_of_nan_fails_instead_of_labelling(tiny: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    model = onnx.load(tiny)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = np.full(len(weight.raw_data) // 4, np.nan, np.float32).tobytes()
    broken = copied(tiny, tmp_path)
    onnx.save(model, broken)
    change_manifest(broken, sha256=sha256(broken.read_bytes()).hexdigest())
    session = segmenter_trt.Session(segmenter_trt.Engine(broken, threads=1))
    image = np.zeros((TINY, TINY, 3), np.uint8)
    for call in (session.run, session.logits, session.masks, lambda x: session.sliding_window(x, window=TINY)):
        with pytest.raises(segmenter_trt.RunError):
            call(image)


def test_errors_are_classes_of_their_own(engine_folder: Path, tmp_path: Path) -> None:
    names = ("ManifestError", "ArtifactError", "Unavailable", "InputError", "RunError")
    assert all(issubclass(getattr(segmenter_trt, name), segmenter_trt.Error) for name in names)
    assert segmenter_trt.RunError.__module__ == "segmenter_trt"
    with pytest.raises(segmenter_trt.ArtifactError, match="no such engine file"):
        segmenter_trt.Engine(tmp_path / "none.onnx")
    files = ", ".join(f"{name} (openvino)" for name in (FP16, FP32, INT8))  # plans are built from the other one
    said = f"{engine_folder}: is a folder of engines, wanted one of them; open its file {files}"
    with pytest.raises(segmenter_trt.ArtifactError, match=f"^{re.escape(said)}$"):
        segmenter_trt.Engine(engine_folder)
    path = copied(engine_folder / FP32, tmp_path)
    with pytest.raises(segmenter_trt.InputError, match="backend 'tensorrt' cannot open it"):
        segmenter_trt.Engine(path, backend="tensorrt")
    with pytest.raises(segmenter_trt.InputError, match="fp8"):
        segmenter_trt.Engine(path, precision="fp8")
    with pytest.raises(segmenter_trt.Unavailable):
        segmenter_trt.Engine(path, runtime=tmp_path)
    odd = os.fsdecode(bytes(tmp_path) + b"/\xff.onnx")
    with pytest.raises(segmenter_trt.ArtifactError, match=f"^{re.escape(odd)}: no such engine file"):
        segmenter_trt.Engine(odd)
    change_manifest(path, sha256="0" * 64)
    with pytest.raises(segmenter_trt.ArtifactError, match="expected SHA-256"):
        segmenter_trt.Engine(path)
    path.with_name(path.name + ".json").write_text("{")
    with pytest.raises(segmenter_trt.ManifestError, match="not a manifest"):
        segmenter_trt.Engine(path)
    with pytest.raises(TypeError, match=r"wanted a segmenter_trt\.Engine"):
        segmenter_trt.Session(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"height": [2 * H] * 3}, f"[1 to 64, 3, {2 * H}, {W}]"),
        ({"width": [W - 8, W, W]}, f"[1 to 64, 3, {H}, {W - 8} to {W}]"),
        ({"input": "pixels"}, f"[1 to 64, {H}, {W}, 3]"),
    ],
)
def test_a_graph_that_takes_other_images_than_its_manifest_says_is_not_opened(
    engine_folder: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    artifact = copied(engine_folder / FP32, tmp_path, batch=[1, 1, 64], **changes)
    told = f"{artifact}: the graph takes images [any, 3, {H}, {W}], its manifest says {says}; export it again"
    with pytest.raises(segmenter_trt.ArtifactError, match=re.escape(told)):
        segmenter_trt.Engine(artifact)
    for engine in ("openvino", "onnxruntime"):
        with pytest.raises(EngineError, match=re.escape(told)):
            open_engine(artifact, engine, threads=1)


def test_the_manifest_and_the_facts(engine: Any, session: Any, engine_folder: Path) -> None:
    written = json.loads((engine_folder / (FP32 + ".json")).read_text())
    assert json.loads(json.dumps(engine.manifest)) == written
    facts = session.describe()
    assert facts == engine.describe()
    assert facts["runtime"].startswith("openvino 20")
    assert (facts["device"], facts["precision"], facts["threads"]) == ("cpu", "fp32", 1)
    assert (facts["height"], facts["width"]) == ((H, H, H), (W, W, W))
    assert session.engine is engine
    assert repr(session) == f"<segmenter_trt.Session of {engine!r}>"


def test_what_is_not_verified_is_told_or_refused(engine_folder: Path, tmp_path: Path) -> None:
    path = copied(engine_folder / FP32, tmp_path, verification=None)
    complaint = "not verified in openvino-fp32; run `segmenter verify --engine openvino` on this machine"
    assert segmenter_trt.Engine(path, threads=1).describe()["warning"] == complaint
    with pytest.raises(segmenter_trt.ArtifactError, match=rf"{FP32}: {complaint}"):
        segmenter_trt.Engine(path, threads=1, require_verified=True)
    manifest = read_manifest(path)
    digests = {"sha256": manifest.sha256, "facts_sha256": facts_digest(manifest)}
    for passed, warning in ((True, ""), (False, "failed its verification in openvino-fp32: mIoU dropped; run")):
        verdict = {"passed": passed, "faults": ["mIoU dropped"], **digests}
        change_manifest(path, verification={"openvino-fp32": verdict, "onnxruntime-fp32": verdict | {"passed": False}})
        assert segmenter_trt.Engine(path, threads=1).describe()["warning"].startswith(warning)
    change_manifest(path, verification={"openvino-fp32": verdict | {"passed": True}})
    engine = segmenter_trt.Engine(path, threads=1, require_verified=True)
    assert segmenter_trt.Session(engine).describe()["warning"] == ""
    change_manifest(path, preprocess={"mean": [0.1] * 3, "std": [0.2] * 3})
    with pytest.raises(segmenter_trt.ArtifactError) as native:
        segmenter_trt.Engine(path, threads=1, require_verified=True)
    with pytest.raises(EngineError, match="or before what its manifest says of classes, preprocessing or") as python:
        open_session(path, "openvino", threads=1, require_verified=True)
    assert str(python.value).startswith(str(native.value))


def test_importing_loads_nothing() -> None:
    program = (
        "import sys, segmenter_trt; from segmenter_trt import runtimes; folder = runtimes.folder('openvino');"
        "loaded = {name.partition('.')[0] for name in sys.modules};"
        "print(sorted(loaded & {'numpy', 'openvino', 'torch', 'tensorrt', 'tensorrt_rtx'}), folder);"
        "print([line.split()[-1] for line in open('/proc/self/maps') if 'openvino' in line or 'libcuda' in line])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, second = result.stdout.splitlines()
    assert first.startswith("[] ")
    assert Path(first[3:]).name == "libs"
    assert second == "[]"


@pytest.mark.parametrize(
    ("runtime", "package", "libraries", "variable"),
    [
        ("openvino", "openvino", "libs", "SEGMENTER_TRT_OPENVINO"),
        ("tensorrt", "tensorrt_libs", ".", "SEGMENTER_TRT_TENSORRT"),
        ("tensorrt-rtx", "tensorrt_rtx_libs", ".", "SEGMENTER_TRT_TENSORRT"),
    ],
)
def test_a_variable_that_names_a_library_goes_before_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, package: str, libraries: str, variable: str
) -> None:
    runtimes = segmenter_trt.runtimes
    folder, own = tmp_path / package / libraries, tmp_path / "libsegmenter_trt_plugin.so"
    folder.mkdir(parents=True)
    for file in (tmp_path / package / "__init__.py", own):
        file.touch()
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(runtimes, "__file__", str(tmp_path / "runtimes.py"))
    for name in (variable, "SEGMENTER_TRT_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    assert (runtimes.folder(runtime), runtimes.plugins()) == (folder, own)
    for name in (variable, "SEGMENTER_TRT_PLUGINS"):
        monkeypatch.setenv(name, "")
    assert (runtimes.folder(runtime), runtimes.plugins()) == (folder, own)
    for name in (variable, "SEGMENTER_TRT_PLUGINS"):
        monkeypatch.setenv(name, "/elsewhere")
    assert (runtimes.folder(runtime), runtimes.plugins()) == (None, None)
    assert segmenter_trt.plugin_library() == own  # what came with the module, whatever engines take
