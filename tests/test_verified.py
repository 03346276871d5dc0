"""What a manifest's verdicts are worth to whoever opens the artifact."""

import re
import shutil
import warnings
from dataclasses import replace

import pytest

from segmenter.config import Preprocess
from segmenter.errors import EngineError
from segmenter_engines import open_session
from segmenter_engines.folder import FP16, FP32, INT8
from segmenter_engines.limits import LIMITS
from segmenter_engines.manifest import PIXELS, manifest_path, read_manifest, vouched
from segmenter_engines.sessions import open_engine
from segmenter_engines.verdict import Verdict, record
from segmenter_engines.verified import carry, facts_digest, graph_verification, passed_saturating, unverified
from tests.fake_machine import machine_fixture  # noqa: F401 - a fixture
from tests.fake_tensorrt import write_plan
from tests.networks import CLASSES
from tests.small_engines import H, W
from tests.test_plan_checks import plan  # noqa: F401 - a fixture

PASSED = Verdict("onnxruntime-fp32", "fp32", 4, 0.5, 0.5, 1.0, LIMITS["fp32"])
FAILED = Verdict("openvino-fp32", "fp32", 4, 0.4, 0.5, 1.0, LIMITS["fp32"])


def passed_as(manifest, **more):
    """A verdict of an artifact with this manifest."""
    return {"passed": True, "sha256": manifest.sha256, "facts_sha256": facts_digest(manifest), **more}


@pytest.fixture
def artifact(engine_folder, tmp_path):
    for path in (engine_folder / FP32, manifest_path(engine_folder / FP32)):
        shutil.copy(path, tmp_path)
    return tmp_path / FP32


def test_what_is_not_verified_is_warned_of_or_refused(artifact):
    with pytest.warns(
        RuntimeWarning, match=rf"{FP32}: not verified in onnxruntime-fp32; run `segmenter verify --engine"
    ):
        open_session(artifact, threads=1).close()
    with pytest.raises(EngineError, match="not verified in onnxruntime-fp32"):
        open_session(artifact, threads=1, require_verified=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_engine(artifact, threads=1).close()


def test_a_verdict_is_of_one_engine_and_tells_what_failed(artifact):
    record(artifact, PASSED)
    record(artifact, FAILED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_session(artifact, "onnxruntime", threads=1, require_verified=True).close()
    complaint = r"failed its verification in openvino-fp32: mIoU dropped by 0\.1000"
    advice = ", or open it in onnxruntime, where it is verified$"
    with pytest.warns(RuntimeWarning, match=f"{complaint}.*{advice}"):
        open_session(artifact, "openvino", threads=1).close()
    with pytest.raises(EngineError, match=complaint):
        open_session(artifact, "openvino", threads=1, require_verified=True)


def test_a_verdict_of_another_file_does_not_count(artifact):
    record(artifact, PASSED)
    manifest = read_manifest(artifact)
    assert unverified(manifest, "onnxruntime-fp32") is None
    assert unverified(replace(manifest, sha256="0" * 64), "onnxruntime-fp32") == "not verified in onnxruntime-fp32"
    assert unverified(replace(manifest, verification=None), "onnxruntime-fp32") is not None
    forged = {"onnxruntime-fp32": {"passed": True}}
    assert unverified(replace(manifest, verification=forged), "onnxruntime-fp32") is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocess": Preprocess(mean=(0.1, 0.1, 0.1), std=(0.2, 0.2, 0.2))},
        {"preprocess": Preprocess(mean=(0.5, 0.5, 0.5 + 2**-53))},
        {"classes": CLASSES[::-1]},
        {"patch_size": 8},
        {"height": (H, H, 2 * H)},
        {"width": (W, W, 2 * W)},
        {"batch": (1, 2, 4)},
        {"input": PIXELS},
        {"precision": "bf16"},
        {"outputs": ("masks",)},
        {"plugins": ("SegmenterAttention",)},
        {"details": {"plugin_library": {"name": "p.so", "sha256": "0" * 64}}},
    ],
)
def test_a_verdict_of_another_manifest_does_not_count(artifact, changes):
    record(artifact, PASSED)
    manifest = read_manifest(artifact)
    since = "verified in onnxruntime-fp32 by an older release, or before what its manifest says of .* was changed"
    assert re.fullmatch(since, unverified(replace(manifest, **changes), PASSED.engine))
    repainted = replace(manifest, palette=((1, 2, 3),) * len(CLASSES), model="other", machine="other", command="make")
    assert unverified(repainted, PASSED.engine) is None
    older = {PASSED.engine: {"passed": True, "sha256": manifest.sha256}}
    assert re.fullmatch(since, unverified(replace(manifest, verification=older), PASSED.engine))


def test_a_manifest_edited_after_its_verdict_is_warned_of_or_refused(artifact):
    record(artifact, PASSED)
    replace(read_manifest(artifact), classes=CLASSES[::-1]).write(artifact)
    with pytest.warns(RuntimeWarning, match="was changed; run `segmenter verify --engine onnxruntime`"):
        open_session(artifact, threads=1).close()
    with pytest.raises(EngineError, match="was changed; run `segmenter verify"):
        open_session(artifact, threads=1, require_verified=True)
    record(artifact, PASSED)
    open_session(artifact, threads=1, require_verified=True).close()


@pytest.mark.parametrize(
    ("faults", "told"),
    [(5, "it does not tell why"), ({"a": 1}, "it does not tell why"), ([3, "drop\x1b[2J", "ü"], r"drop\?\[2J; \?")],
)
def test_faults_come_from_a_file_and_may_be_anything(artifact, faults, told):
    verdict = {"passed": False, "faults": faults, "sha256": read_manifest(artifact).sha256}
    manifest = replace(read_manifest(artifact), verification={"openvino-fp32": verdict})
    assert re.search(told + "$", unverified(manifest, "openvino-fp32"))


@pytest.mark.parametrize(
    ("flags", "passed"),
    [
        (["avx2", "avx512f"], True),
        ([{}, "avx2"], True),
        (["avx2", "avx_vnni"], False),
        (["asimddp"], False),
        ([], False),
        (None, False),
        ("avx2", False),
    ],
)
def test_an_engine_that_passed_where_int8_overflows_is_not_warned_of_there(
    engine_folder, tmp_path, monkeypatch, flags, passed
):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("segmenter_engines.sessions.openvino.cpu_flags", lambda: ["avx2"])
    for path in (engine_folder / INT8, manifest_path(engine_folder / INT8)):
        shutil.copy(path, tmp_path)
    verdict = passed_as(read_manifest(tmp_path / INT8), cpu_flags=flags)
    for judged, quiet in ((verdict, passed), (verdict | {"passed": False, "faults": []}, False)):
        manifest = replace(read_manifest(tmp_path / INT8), verification={"openvino-int8": judged})
        manifest.write(tmp_path / INT8)
        assert passed_saturating(manifest, "openvino-int8") is quiet
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            open_engine(tmp_path / INT8, "openvino", threads=1).close()
        assert any("no VNNI" in str(each.message) for each in told) is not quiet


def test_a_checkpoint_needs_no_verdict(engine_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_session(engine_folder / "checkpoint", threads=1, require_verified=True).close()


@pytest.mark.parametrize(("verdict", "told"), [(PASSED, "verified only as the graph"), (FAILED, "the graph .* failed")])
def test_a_plan_carries_the_verdict_of_its_graph_as_the_graphs(artifact, plan, verdict, told):  # noqa: F811
    record(artifact, verdict)
    graph, (path, manifest) = read_manifest(artifact), plan
    own = {"tensorrt-rtx-fp16": passed_as(manifest)}
    replace(manifest, source={"onnx": vouched("0" * 64)}).write(path)
    with pytest.raises(EngineError, match="was not built from"):
        carry(artifact, path)
    replace(manifest, source={"onnx": vouched(graph.sha256)}, verification=own).write(path)
    carry(artifact, path)
    carried = read_manifest(path)
    assert set(carried.verification) == {"tensorrt-rtx-fp16", f"graph:{verdict.engine}"}
    assert unverified(carried, "tensorrt-rtx-fp16") is None  # its own verdict is what counts
    without = replace(carried, verification=graph_verification(graph))
    assert re.search(told, unverified(without, "tensorrt-rtx-fp16"))


@pytest.mark.parametrize(
    ("told", "device", "reason"),
    [
        ({"device": "NVIDIA L4"}, "NVIDIA L4", None),
        ({"device": "NVIDIA L4"}, None, None),
        ({"device": "NVIDIA L4"}, "NVIDIA A10", "verified in tensorrt-rtx-fp16 on NVIDIA L4, not on this NVIDIA A10"),
        ({}, "NVIDIA A10", "verified in tensorrt-rtx-fp16 on another GPU, not on this NVIDIA A10"),
        ({"device": 5}, "NVIDIA A10", "verified in tensorrt-rtx-fp16 on another GPU, not on this NVIDIA A10"),
        ({"device": "a\x1b"}, "b", "verified in tensorrt-rtx-fp16 on a?, not on this b"),
    ],
)
def test_a_plan_is_verified_on_the_gpu_it_passed_on(plan, told, device, reason):  # noqa: F811
    _, manifest = plan
    own = {"tensorrt-rtx-fp16": passed_as(manifest, **told)}
    assert unverified(replace(manifest, verification=own), "tensorrt-rtx-fp16", device) == reason


def test_a_plan_that_passed_on_another_gpu_is_warned_of_and_refused(machine, tmp_path):
    path = write_plan(tmp_path / "m.plan")
    manifest = read_manifest(path)
    for device, quiet in ((machine.cuda.gpu, True), ("NVIDIA L4", False)):
        own = {"tensorrt-rtx-fp16": passed_as(manifest, device=device)}
        replace(manifest, verification=own).write(path)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            open_session(path, threads=1).close()
        assert bool(told) is not quiet
    with pytest.raises(EngineError, match=r"on NVIDIA L4, not on this .*; run `segmenter verify"):
        open_session(path, threads=1, require_verified=True)


def test_a_graph_without_verdicts_gives_none(engine_folder):
    assert graph_verification(read_manifest(engine_folder / FP16)) is None
