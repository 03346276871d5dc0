"""Plans that must not reach a runtime: each is refused with what was expected, what came, and how to make it again."""

from dataclasses import replace
from importlib.util import find_spec

import pytest

from segmenter.config import Preprocess
from segmenter.errors import EngineError, Unavailable
from segmenter.files import sha256
from segmenter_engines.build import build
from segmenter_engines.gpu_targets import set_targets
from segmenter_engines.manifest import NORMALIZED, Manifest, read_manifest
from segmenter_engines.plan_checks import check_plan, read_header, read_plan, runs_on

COMMAND = "segmenter build m.onnx --out m.plan"


def plan_bytes(tag=b"vtrt", version=(1, 7, 1, 116), length=64, layout=0):
    head = tag + layout.to_bytes(4, "little") + (2).to_bytes(8, "little") + length.to_bytes(8, "little")
    return (head + bytes(version) + tag).ljust(64, b"\1")


def checked(path, manifest, *runtime):
    """The bytes of a plan that may be given to a runtime."""
    content = read_plan(path, manifest)
    check_plan(path, manifest, content, *runtime)
    return content


@pytest.fixture
def plan(tmp_path):
    """A file that begins as a TensorRT-RTX plan does, its manifest, and the plugin library it names."""
    (tmp_path / "m.plan").write_bytes(plan_bytes())
    (tmp_path / "plugins.so").write_bytes(b"a library")
    manifest = Manifest(
        artifact="m.plan",
        kind="plan",
        engine="tensorrt-rtx",
        precision="fp16",
        sha256=sha256(tmp_path / "m.plan"),
        source={},
        model="m",
        patch_size=16,
        input=NORMALIZED,
        height=(32, 32, 32),
        width=(32, 32, 32),
        batch=(1, 1, 4),
        outputs=("labels",),
        classes=("a", "b"),
        palette=((0, 0, 0), (1, 1, 1)),
        preprocess=Preprocess(),
        command=COMMAND,
        versions={"tensorrt-rtx": "1.7.1.116"},
        machine="Linux",
        compute_capabilities=("8.6", "8.9+"),
    )
    return tmp_path / "m.plan", manifest


def test_a_plan_that_fits_is_given_back_whole(plan):
    path, manifest = plan
    assert checked(path, manifest, "1.7.1.116", (9, 0)) == plan_bytes()
    assert checked(path, manifest, "1.7.1.116", None) == plan_bytes()
    library = {"name": "plugins.so", "sha256": sha256(path.with_name("plugins.so"))}
    plugged = replace(manifest, plugins=("SegmenterAttention",), details={"plugin_library": library})
    assert checked(path, plugged, "1.7.1.116", (8, 6), path.with_name("plugins.so")) == plan_bytes()


@pytest.mark.parametrize(
    ("changes", "version", "capability", "plugins", "complaint"),
    [
        ({"sha256": "0" * 64}, "1.7.1.116", None, None, r"expected SHA-256 0+, it has [0-9a-f]{64}"),
        ({"kind": "onnx"}, "1.7.1.116", None, None, "is of an onnx, wanted a plan"),
        ({}, "1.6.1.120", None, None, r"built with tensorrt-rtx 1\.7\.1\.116, this is 1\.6\.1\.120"),
        ({"versions": {}}, "1.7.1.116", None, None, "of a version its manifest does not tell"),
        (
            {"versions": {"tensorrt-rtx": "1.6.1.120"}},
            "1.6.1.120",
            None,
            None,
            r"own header says .* 1\.7\.1\.116 wrote",
        ),
        ({}, "1.7.1.116", (8, 0), None, r"capability 8\.6 or 8\.9\+, this one has 8\.0"),
        ({"plugins": ("X",)}, "1.7.1.116", None, "plugins.so", r"m\.plan\.json: vouches for no plugin library"),
        ({"plugins": ("X",), "library": "0" * 64}, "1.7.1.116", None, None, r"needs the plugin library .* not here"),
        ({"plugins": ("X",), "library": "0" * 64}, "1.7.1.116", None, "no.so", r"not here \(.*no\.so\)"),
        ({"plugins": ("X",), "library": "0" * 64}, "1.7.1.116", None, "plugins.so", r"SHA-256 0+, .*plugins\.so has"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_the_command(plan, changes, version, capability, plugins, complaint):
    path, manifest = plan
    if library := changes.pop("library", None):
        changes["details"] = {"plugin_library": {"name": "plugins.so", "sha256": library}}
    with pytest.raises(EngineError, match=complaint) as caught:
        checked(path, replace(manifest, **changes), version, capability, plugins and path.with_name(plugins))
    assert COMMAND in str(caught.value)


def test_a_gpu_that_a_plan_is_not_for_is_what_the_machine_lacks(plan):
    path, manifest = plan
    for command, advice in (
        (COMMAND, f"make it again: `{COMMAND}`, with --gpus 8.0, or --engine tensorrt"),
        ("segmenter pipeline ckpt --out m", "build its graph: `segmenter build` with --gpus 8.0, or --engine tensorrt"),
    ):
        with pytest.raises(Unavailable, match=f"run it on one of those, or {advice}"):
            checked(path, replace(manifest, command=command), "1.7.1.116", (8, 0))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (plan_bytes(tag=b"ftrt"), "begins as one of tensorrt does, wanted one of tensorrt-rtx"),
        (plan_bytes(length=63), "has 64 bytes, its own header says 63"),
        (b"vtrt", "begins as no plan does"),
        (b"", "begins as no plan does"),
        (b"x" * 64, "begins as no plan does"),
    ],
)
def test_the_header_of_a_plan_is_believed_against_its_manifest(plan, content, complaint):
    path, manifest = plan
    path.write_bytes(content)
    with pytest.raises(EngineError, match=complaint):
        checked(path, replace(manifest, sha256=sha256(path)), "1.7.1.116", None)


def test_a_plan_of_tensorrt_tells_its_version_where_the_layout_is_known(plan):
    path, manifest = plan
    for layout, raises in ((0, True), (1, False)):
        path.write_bytes(plan_bytes(tag=b"ftrt", version=(10, 3, 0, 26), layout=layout))
        versions = {"tensorrt": "10.14.1.48.post1"}
        changed = replace(manifest, engine="tensorrt", sha256=sha256(path), versions=versions)
        if raises:
            with pytest.raises(EngineError, match=r"own header says tensorrt 10\.3\.0\.26"):
                checked(path, changed, "10.14.1.48", None)
        else:
            assert checked(path, changed, "10.14.1.48", None)


@pytest.mark.parametrize(
    ("header", "told", "here", "fits"),
    [
        ((10, 7, 0, 23), "10.7.0", "10.7.0", True),
        ((10, 7, 0, 23), "10.7.0", "10.7.0.23", True),
        ((10, 7, 0, 23), "10.7.0.23", "10.7.0", True),
        ((10, 7, 0, 23), "10.7.0", "10.7.0.24", False),
        ((10, 7, 1, 23), "10.7.0", "10.7.0", False),
        ((10, 7, 0, 23), "10.7", "10.7.0", False),
        ((10, 7, 0, 23), "10.7.0", "10.7", False),
        ((10, 8, 0, 43), "10.8.0.43", "10.8.0.44", False),
    ],
)
def test_versions_are_compared_by_the_numbers_both_tell(plan, header, told, here, fits):
    """TensorRT's Python module tells three up to 10.7, the header of a plan and the C++ library always four."""
    path, manifest = plan
    path.write_bytes(plan_bytes(tag=b"ftrt", version=header))
    changed = replace(manifest, engine="tensorrt", sha256=sha256(path), versions={"tensorrt": told})
    if fits:
        assert checked(path, changed, here, None)
    else:
        with pytest.raises(EngineError, match=f"this is {here}"):
            checked(path, changed, here, None)


@pytest.mark.parametrize(
    ("precision", "gpus"),
    [("fp16", ("8.0", "8.6", "8.9", "12.0")), ("int8", ("8.0", "8.6", "8.9", "12.0")), ("fp8", ("8.9", "12.0"))],
)
def test_a_plan_of_tensorrt_rtx_promises_the_gpus_it_is_built_for(precision, gpus):
    # the builder is told nothing, and builds for these
    assert set_targets(None, None, "tensorrt-rtx", (), precision) == gpus
    for unknown in ((7, 5), (9, 0), (10, 0), (12, 1)):
        assert not runs_on(gpus, unknown)
    assert runs_on(gpus, (8, 9))
    assert runs_on(gpus, (8, 6)) is (precision != "fp8")


@pytest.mark.parametrize("gpu", ["7.5", "5.0"])
def test_gpus_older_than_every_session_takes_are_refused(gpu):
    with pytest.raises(EngineError, match=f"--gpus {gpu}: .*begin with 8.0"):
        set_targets(None, None, "tensorrt-rtx", ("8.6", gpu), "fp16")


def test_capabilities_are_exact_or_least():
    assert runs_on((), (7, 5))
    assert runs_on(("9.0",), (9, 0))
    assert not runs_on(("9.0",), (10, 0))
    assert runs_on(("8.0+",), (12, 0))
    assert not runs_on(("8.0+",), (7, 5))
    assert not runs_on(("10.0",), (8, 6))


@pytest.mark.tensorrt
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_the_header_of_a_real_plan(engine_folder, tmp_path):
    import tensorrt_rtx

    build(engine_folder / "model.fp16.onnx", tmp_path / "m.plan")
    manifest = read_manifest(tmp_path / "m.plan", check_hash=False)
    plan = checked(tmp_path / "m.plan", manifest, tensorrt_rtx.__version__, None)
    header = read_header(plan)
    assert header is not None
    assert header.length == len(plan) == (tmp_path / "m.plan").stat().st_size
    assert header.version == tuple(int(part) % 256 for part in tensorrt_rtx.__version__.split("."))
