"""segmenter_trt_cli: pictures and frames in, labels out, and mistakes refused in one line."""

import os
import re
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmenter.images import overlay, resize_labels
from segmenter_engines.folder import FP32
from segmenter_engines.manifest import read_manifest
from segmenter_engines.sessions import open_engine
from tests import labelling
from tests.sdk import call, refused
from tests.small_engines import HEIGHTS, RANGED, WIDTHS, H, W, pictures
from tests.trt_backend import compile_backend, write_plan

pytest.importorskip("openvino", reason="openvino is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def session(engine_folder: Path) -> Any:
    with open_engine(engine_folder / FP32, "openvino", threads=1) as session:
        yield session


def labels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(next(path.parent.glob(path.stem + ".p[ng][gm]"))))


def test_a_folder_becomes_labels_and_overlays(
    cli: Any, formats: set[str], session: Any, engine_folder: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    sizes = {"same": (H, W), "larger": (2 * H, 2 * W), "odd": (40, 51)}
    images = {
        name: np.asarray(Image.fromarray(pictures(1, 64, 64, seed=1)[0]).resize(size[::-1]))
        for name, size in sizes.items()
    }
    for name, image in images.items():
        for suffix, format in (("ppm", "ppm"), ("png", "png"), ("jpg", "jpeg")):
            if format in formats:
                Image.fromarray(image).save(source / f"{name}_{format}.{suffix}")
    (source / "notes.txt").write_text("no picture")
    result = cli(source, "--out", out, "--overlay", "--alpha", "0.25")
    assert result.returncode == 0, result.stderr
    count = 3 * len(formats - {"pgm"})
    assert result.stdout == f"{count} of {count} pictures labelled into {out}\n"
    palette = read_manifest(engine_folder / FP32).palette
    for file in source.glob("*_*"):
        image = np.asarray(Image.open(file).convert("RGB"))
        fitted = np.asarray(Image.fromarray(image).resize((W, H), Image.Resampling.BILINEAR))
        labels = resize_labels(session(fitted), *image.shape[:2])
        np.testing.assert_array_equal(labels_of(out / "labels" / file.name), labels, err_msg=file.name)
        drawn = np.asarray(Image.open(next((out / "overlays").glob(file.stem + ".p*"))))
        np.testing.assert_array_equal(drawn, overlay(image, labels, palette, 0.25))
    if "png" in formats:
        picture = Image.open(out / "labels" / "same_ppm.png")
        assert picture.mode == "P"
        assert picture.getpalette()[: 3 * len(palette)] == [value for colour in palette for value in colour]
    assert not list(out.rglob("*.tmp"))
    # several in a call, as far as they come to one size
    assert cli(source, "--out", tmp_path / "batches", "--overlay", "--alpha", "0.25", "--batch", "4").returncode == 0
    for file in out.rglob("*.*"):
        assert (tmp_path / "batches" / file.relative_to(out)).read_bytes() == file.read_bytes(), file


def test_an_engine_between_sizes_labels_pictures_of_any_size_as_segmenter_label_does(
    sdk: Path, ranged_folder: Path, tmp_path: Path
) -> None:
    (low, _, high), (narrow, _, wide) = HEIGHTS, WIDTHS
    sizes = {
        "within": (high - 40, narrow + 21),
        "too_high": (2 * high, wide - 33),
        "too_wide": (high - 40, wide + 1),
        "too_large": (high + 60, 2 * wide),
        "too_small": (low - 5, narrow - 7),
        "thin": (high + 60, narrow - 7),
    }
    for folder in ("png", "ppm"):
        (tmp_path / folder).mkdir()
    for name, (height, width) in sizes.items():
        image = Image.fromarray(pictures(1, 64, 64, seed=7)[0]).resize((width, height))
        for folder in ("png", "ppm"):
            image.save(tmp_path / folder / f"{name}.{folder}")
    assert labelling.label(ranged_folder / RANGED, tmp_path / "png", tmp_path / "wanted", "--engine", "openvino") == 0
    command = (sdk / "bin" / "segmenter_trt_cli", ranged_folder / RANGED, tmp_path / "ppm", "--threads", "1")
    for batch in ("1", "4"):
        result = call(*command, "--out", tmp_path / batch, "--batch", batch)
        assert result.returncode == 0, result.stderr
        for name, size in sizes.items():
            wanted = np.asarray(Image.open(tmp_path / "wanted" / f"{name}.png"))
            assert wanted.shape == size
            np.testing.assert_array_equal(labels_of(tmp_path / batch / "labels" / name), wanted, err_msg=name)


def test_grey_pictures(cli: Any, formats: set[str], session: Any, tmp_path: Path) -> None:
    grey = Image.fromarray(pictures(1, seed=2)[0]).convert("L")
    files = [("grey.pgm", "pgm"), ("grey.png", "png"), ("few.png", "png"), ("palette.png", "png"), ("grey.jpg", "jpeg")]
    for name, format in files:
        if format not in formats:
            continue
        path = tmp_path / name
        {"few": grey.convert("1"), "palette": grey.convert("P")}.get(path.stem, grey).save(path)
        result = cli(path, "--out", tmp_path / name.replace(".", "_"))
        assert result.returncode == 0, result.stderr
        image = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(labels_of(tmp_path / name.replace(".", "_") / "labels" / name), session(image))


def test_frames_become_labels(cli: Any, session: Any, engine_folder: Path, tmp_path: Path) -> None:
    frames = pictures(4, seed=3)
    expected = session(frames)
    result = cli("--raw", f"{W}x{H}", input=frames.tobytes(), text=False)
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(np.frombuffer(result.stdout, np.uint8).reshape(4, H, W), expected)
    together = cli("--raw", f"{W}x{H}", "--batch=3", input=frames.tobytes(), text=False)
    assert together.stdout == result.stdout
    drawn = cli(f"--raw={W}x{H}", "--overlay", input=frames.tobytes(), text=False).stdout
    palette = read_manifest(engine_folder / FP32).palette
    np.testing.assert_array_equal(
        np.frombuffer(drawn, np.uint8).reshape(frames.shape)[3], overlay(frames[3], expected[3], palette)
    )
    assert cli("--raw", f"{W}x{H}", "--out", tmp_path, input=frames.tobytes(), text=False).returncode == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "labels" / "frame_000003.png"), expected[3])
    cut = cli("--raw", f"{W}x{H}", input=frames.tobytes()[:-1], text=False)
    assert cut.returncode == 2
    assert b"stdin: frame 3 ends after 12095 of 12096 bytes" in cut.stderr
    assert len(cut.stdout) == 3 * H * W
    assert cli("--raw", f"{W}x{H}", "--batch", "8", input=frames.tobytes()[:-1], text=False).stdout == cut.stdout


def test_a_pause_between_frames_is_not_their_end(cli: Any, session: Any) -> None:
    frames = pictures(2, seed=3)
    source, sink = os.pipe()
    os.set_blocking(source, False)

    def write() -> None:
        with os.fdopen(sink, "wb", buffering=0) as pipe:
            for part in (frames[0].tobytes(), frames[1].tobytes()[:100], frames[1].tobytes()[100:]):
                pipe.write(part)
                time.sleep(0.3)

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(source, "rb") as stdin:
        result = cli("--raw", f"{W}x{H}", stdin=stdin, text=False)
    writer.join()
    assert (result.returncode, result.stderr) == (0, b"")
    np.testing.assert_array_equal(np.frombuffer(result.stdout, np.uint8).reshape(2, H, W), session(frames))


def test_a_stdin_that_cannot_be_read_is_named(cli: Any, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        refused(cli("--raw", f"{W}x{H}", stdin=folder), r"stdin: cannot be read \(Is a directory\)")
    finally:
        os.close(folder)


def test_two_pictures_never_become_one_file(cli: Any, tmp_path: Path) -> None:
    for name in ("a.pgm", "a.mask.ppm", "a.ppm"):  # the two of one name do not follow each other
        Image.fromarray(pictures(1)[0]).convert("L" if name == "a.pgm" else "RGB").save(tmp_path / name)
    refused(cli(tmp_path, "--out", tmp_path / "out"), r"a\.ppm and a\.pgm would both become one file; rename one")


def test_a_line_of_pixels_costs_nothing_and_others_are_labelled(sdk: Path, ranged_folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((1, 60_000, 3), np.uint8)).save(tmp_path / "line.ppm")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "well.ppm")
    program = sdk / "bin" / "segmenter_trt_cli"
    result = call(program, ranged_folder / RANGED, tmp_path, "--out", tmp_path / "out", "--window=48", "--threads=1")
    refused(result, "line.ppm: image 1x60000: its shorter side", status=1)
    assert [path.stem for path in (tmp_path / "out" / "labels").iterdir()] == ["well"]


def test_a_name_may_be_as_long_as_names_get(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".ppm")
    Image.fromarray(pictures(1)[0]).save(path)
    assert cli(path, "--out", tmp_path / "out").returncode == 0
    assert [file.stem for file in (tmp_path / "out" / "labels").iterdir()] == [path.stem]


def test_pictures_are_written_in_files_of_ones_own(cli: Any, sdk: Path, engine_folder: Path, tmp_path: Path) -> None:
    alone = ("unshare", "--user", "--map-root-user", "--pid", "--fork")  # the first process there, as in a container
    if not shutil.which("unshare") or call(*alone, "true").returncode:
        pytest.skip("no namespace for processes can be made here")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "picture.ppm")
    labels = tmp_path / "out" / "labels"
    labels.mkdir(parents=True)
    others = labels / ".segmenter_trt.1.tmp"
    others.write_bytes(b"half a pict")
    program = (*alone, sdk / "bin" / "segmenter_trt_cli", engine_folder / FP32, tmp_path / "picture.ppm")
    result = call(*program, "--out", tmp_path / "out", "--threads", "1", umask=0o027)
    assert result.returncode == 0, result.stderr
    assert others.read_bytes() == b"half a pict"
    (written,) = labels.glob("picture.*")
    assert written.stat().st_mode & 0o777 == 0o640
    # and nothing is left of what cannot be put in its place
    written.unlink()
    written.mkdir()
    refused(cli(tmp_path / "picture.ppm", "--out", tmp_path / "out"), rf"{written}: cannot be written \(.*; make room")
    assert sorted(labels.iterdir()) == [others, written]


def test_times(cli: Any) -> None:
    result = cli("--time", "20")
    assert result.returncode == 0, result.stderr
    numbers = re.fullmatch(
        r"openvino .*, cpu, fp32, 1 threads, 56x72: p50 (\S+) ms, p90 (\S+) ms, p99 (\S+) ms, (\S+) images/s\n",
        result.stdout,
    )
    assert numbers is not None, result.stdout
    p50, p90, p99, rate = map(float, numbers.groups())
    assert 0 < p50 <= p90 <= p99
    assert rate > 0
    advice = "run `segmenter verify --engine openvino` on this machine"
    assert result.stderr == f"warning: not verified in openvino-fp32; {advice}\n"
    assert "1 threads, 4 of 56x72: p50 " in cli("--time", "5", "--batch", "4").stdout
    refused(cli("--time", "1", "--require-verified"), "model.fp32.onnx: not verified in openvino-fp32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no picture or folder given"),
        (("nowhere",), "nowhere to write labels to"),
        (("nowhere", "--out", "x"), "nowhere: no such file or folder"),
        (("a", "b", "--out", "x"), "more than an engine and a picture"),
        (("--nonsense",), "no option --nonsense; see segmenter_trt_cli --help"),
        (("--time",), "--time: wanted a value|--time --threads"),
        (("--time", "none"), "--time none: wanted a number"),
        (("--time", "0"), "--time 0: wanted a number"),
        (("--raw", "5"), "--raw 5: wanted WIDTHxHEIGHT"),
        (("--raw", "0x5"), "--raw: width 0: wanted a number"),
        (("--raw", "100000x100000"), "wanted at most 89478485 pixels"),
        (("--raw", "4x4", "picture"), "leave one out"),
        (("--time", "1", "--stride", "5"), "pass --window too"),
        (("--time", "1", "--batch", "65"), "--batch 65: this engine takes at most 64; pass that, or build it for more"),
        (("--time", "1", "--batch", "2", "--window", "56"), "pass --window-batch instead"),
        (("--time", "1", "--window", "4", "--stride", "5"), "leaves gaps"),
        (("--time", "1", "--alpha", "2"), "--alpha 2: wanted a number"),
        (("--time", "1", "--backend", "tensorrt"), "backend 'tensorrt' cannot open it"),
        (("--time", "1", "--window", "16"), "image 16x16: this engine takes 56x72"),
    ],
)
def test_mistakes_are_one_line(cli: Any, arguments: tuple[str, ...], message: str) -> None:
    refused(cli(*arguments), message)


def test_a_file_where_the_folder_of_labels_should_be_is_named(cli: Any, tmp_path: Path) -> None:
    picture, file = tmp_path / "picture.ppm", tmp_path / "file"
    Image.fromarray(pictures(1)[0]).save(picture)
    file.touch()
    refused(cli(picture, "--out", file), f"{file}/labels: no folder can be made there .*; choose another --out")


def test_help_and_version_need_no_engine(sdk: Path) -> None:
    from segmenter.version import __version__

    program = sdk / "bin" / "segmenter_trt_cli"
    assert call(program, "--version").stdout == f"segmenter_trt_cli {__version__}\n"
    shown = call(program, "--help").stdout
    assert shown.startswith("usage: segmenter_trt_cli ENGINE [IMAGES] [OPTIONS]\n")
    assert max(map(len, shown.splitlines())) <= 120
    refused(call(program), "no engine given")


def test_labels_beyond_the_classes_are_no_places_in_the_palette(sdk: Path, tmp_path: Path) -> None:
    compile_backend(tmp_path)
    plan = write_plan(tmp_path, classes=["wall", "floor"], palette=[[0, 0, 0], [255, 255, 255]])
    environment = os.environ | {"SEGMENTER_TRT_BACKENDS": str(tmp_path)}
    for red, status in ((1, 0), (200, 2)):
        Image.new("RGB", (6, 4), (red, 0, 0)).save(tmp_path / "picture.ppm")
        command = (plan, tmp_path / "picture.ppm", "--out", tmp_path / "out", "--overlay")
        result = call(sdk / "bin" / "segmenter_trt_cli", *command, env=environment)
        assert result.returncode == status, result.stderr
    refused(result, "labels: class 200, and the manifest names 2")


def test_an_engine_that_takes_no_single_picture_gets_its_smallest_batch(sdk: Path, tmp_path: Path) -> None:
    compile_backend(tmp_path)
    plan = write_plan(tmp_path, batch=[2, 2, 3])
    environment = os.environ | {"SEGMENTER_TRT_BACKENDS": str(tmp_path)}
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    frames[:, 0, 0, 1] = 0  # no delay
    command = (sdk / "bin" / "segmenter_trt_cli", plan, "--raw", "6x4")
    for options in ((), ("--batch", "3")):
        result = call(*command, *options, env=environment, input=frames.tobytes(), text=False)
        assert result.returncode == 0, result.stderr
        np.testing.assert_array_equal(np.frombuffer(result.stdout, np.uint8).reshape(3, 4, 6), frames[..., 0])


def test_windows_of_an_engine_that_takes_no_single_picture(sdk: Path, ranged_folder: Path, tmp_path: Path) -> None:
    """Pictures go through windows one by one: two to a call, the second one's labels were read past the first's."""
    one, two = ranged_folder / RANGED, tmp_path / RANGED
    shutil.copy(one, two)
    replace(read_manifest(one), batch=(2, 2, 4)).write(two)
    frames = pictures(3, seed=5)

    def labels(graph: Path) -> np.ndarray:
        command = (sdk / "bin" / "segmenter_trt_cli", graph, "--raw", f"{W}x{H}", "--window", "48", "--threads", "1")
        result = call(*command, input=frames.tobytes(), text=False)
        assert result.returncode == 0, result.stderr
        return np.frombuffer(result.stdout, np.uint8).reshape(3, H, W)

    assert (labels(one) == labels(two)).mean() > 0.999
    timed = call(sdk / "bin" / "segmenter_trt_cli", two, "--time", "2", "--window", "48", "--threads", "1")
    assert ", 1 threads, 96x96: p50 " in timed.stdout, timed.stderr
