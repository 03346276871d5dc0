"""The page to look at predictions with: what it holds, and what a browser makes of it."""

import base64
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmenter import browse
from segmenter.browse import Shelf, page
from segmenter.checkpoint import save_model
from segmenter.datasets import Sample, open_dataset
from segmenter.evaluation import evaluate_labels
from segmenter.inference import Inference, predictor
from segmenter.model import Segmenter
from tests.browser import Browser


class Planted:
    """Pictures of ground with a square of class 1; `mislabel` paints over a part of it that grows with the index."""

    classes = ("ground", "thing", "</script><script>throw 1</script>")
    palette, ignore = ((10, 20, 30), (200, 100, 0), (0, 0, 255)), 255

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        labels = np.zeros((40, 60), np.uint8)
        labels[10:30, 20:40] = 1
        labels[0, :] = 255
        # what the picture holds tells `mislabel` which it is
        return Sample(np.full((40, 60, 3), index, np.uint8), labels, f"img<{index}>.png")


def mislabel(image: np.ndarray) -> np.ndarray:
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 20 : 40 - 4 * int(image[0, 0, 0])] = 1
    return labels


def planted(show: int = 0, side: int = 640) -> tuple[str, Any]:
    """The page of `Planted` and the data in it."""
    shelf = Shelf(show, side)
    matrix = evaluate_labels(mislabel, Planted(), progress=False, each=shelf.add)
    text = page("a <title>", Planted(), matrix, shelf.worst(), "4 images")
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert held is not None
    return text, json.loads(held[1])


def unpacked(one: dict[str, Any], name: str) -> np.ndarray:
    values = np.frombuffer(zlib.decompress(base64.b64decode(one[name])), np.uint8)
    return values.reshape(one["height"], one["width"])


def test_the_page_holds_every_image_worst_first() -> None:
    _, data = planted()
    assert [one["name"] for one in data["images"]] == [f"img<{index}>.png" for index in (3, 2, 1, 0)]
    for one, index in zip(data["images"], (3, 2, 1, 0), strict=True):
        sample = Planted()[index]
        np.testing.assert_array_equal(unpacked(one, "truth"), sample.labels)
        np.testing.assert_array_equal(unpacked(one, "labels"), mislabel(sample.image))
        photo = Image.open(io.BytesIO(base64.b64decode(one["photo"].removeprefix("data:image/jpeg;base64,"))))
        assert photo.size == (60, 40)
        wrong = 20 * 4 * index
        ground = 39 * 60 - 400
        assert one["iou"] == {"0": ground / (ground + wrong), "1": (400 - wrong) / 400}
        assert one["miou"] == pytest.approx(sum(one["iou"].values()) / 2)
        assert one["accuracy"] == pytest.approx(1 - wrong / (39 * 60))
    assert data["iou"][2] is None
    assert data["classes"] == list(Planted.classes)


def test_only_the_worst_are_kept_and_pictures_shrink() -> None:
    _, data = planted(show=1, side=30)
    (one,) = data["images"]
    assert one["name"] == "img<3>.png"
    assert (one["width"], one["height"]) == (30, 20)
    np.testing.assert_array_equal(unpacked(one, "truth"), Planted()[3].labels[1::2, 1::2])
    # of the whole image all the same
    assert one["iou"]["1"] == (400 - 240) / 400


def test_the_page_fetches_nothing_and_no_name_becomes_markup() -> None:
    text, _ = planted()
    assert "http:" not in text
    assert "https:" not in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "default-src 'none'" in text
    assert "<title>a &lt;title&gt;</title>" in text
    assert text.count("</script>") == 2
    assert "throw 1</script>" not in text


def test_browse_command(
    tiny_model: Segmenter, picture_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tiny_model, tmp_path / "checkpoint")
    out = tmp_path / "out" / "page.html"
    arguments = ["--checkpoint", str(tmp_path / "checkpoint"), "--dataset", "folder", "--data", str(picture_root)]
    assert browse.main([*arguments, "--out", str(out), "--show", "1"]) == 0
    assert "the 1 with the lowest mIoU of 2 images" in capsys.readouterr().out
    held = re.search(r'id="data">(.*?)</script>', out.read_text(encoding="utf-8"))
    assert held is not None
    data = json.loads(held[1])
    label = predictor(tiny_model, Inference())
    matrix = evaluate_labels(label, open_dataset("folder", picture_root, "val"), progress=False)
    assert data["miou"] == matrix.miou
    assert len(data["images"]) == 1
    for wrong, message in (
        (["--show", "-1"], "--show -1: wanted a number of images"),
        (["--side", "3"], "--side 3: wanted 16 pixels"),
        (["--split", "test"], "split 'test'"),
    ):
        assert browse.main([*arguments, "--out", str(tmp_path / "other.html"), *wrong]) == 2
        assert message in capsys.readouterr().err
    for mask in (picture_root / "masks" / "val").iterdir():
        Image.new("L", (56, 40), 255).save(mask)
    assert browse.main([*arguments, "--out", str(tmp_path / "other.html")]) == 2
    assert "it has no labelled pixel" in capsys.readouterr().err
    assert not (tmp_path / "other.html").exists()


KEY = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true, cancelable: true}))"
SETTLE = "new Promise((done) => setTimeout(() => done(1), 300))"
PIXEL = """(() => {
  const canvas = document.querySelectorAll('article')[0].querySelectorAll('canvas')[%d];
  return canvas.width ? [...canvas.getContext('2d').getImageData(%d, %d, 1, 1).data] : [];
})()"""


CHOOSE = """(() => {
  const one = document.getElementById('class');
  one.value = '%d';
  one.dispatchEvent(new Event('change'));
  return document.getElementById('count').textContent;
})()"""


def test_in_a_browser(tmp_path: Path) -> None:
    """Pictures, order, filter and keys, at two widths; nothing overflows and nothing complains."""
    file = tmp_path / "page.html"
    file.write_text(planted()[0], encoding="utf-8")
    with Browser() as tab:
        for width in (1280, 400):
            tab.open(file, width)
            tab.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            tab.value(SETTLE)
            # out of sight no picture is held
            assert [fault for fault in tab.faults() if not fault.startswith("no picture")] == []
            names = "[...document.querySelectorAll('article h2')].map((one) => one.textContent)"
            assert tab.value(names) == [f"img<{index}>.png" for index in (3, 2, 1, 0)]
            # the planted square in the label, half of it gone from the prediction, and that part a mistake
            assert tab.value(PIXEL % (0, 35, 20)) == [200, 100, 0, 255]
            assert tab.value(PIXEL % (1, 35, 20)) == [10, 20, 30, 255]
            assert tab.value(PIXEL % (2, 35, 20)) == [229, 38, 43, 255]
            assert tab.value(PIXEL % (2, 22, 20))[3] == 0
            # nobody judges the first row
            assert tab.value(PIXEL % (0, 35, 0))[3] == tab.value(PIXEL % (2, 35, 0))[3] == 0
            for key in ("s", "j", "j", "Enter"):
                tab.value(KEY % key)
            assert tab.value(names) == [f"img<{index}>.png" for index in (0, 1, 2, 3)]
            assert tab.value("document.querySelector('article.current.large h2').textContent") == "img<1>.png"
            assert tab.value(CHOOSE % 2) == "0 of 4 images"
            assert tab.value(CHOOSE % 1) == "4 images"
            tab.value(KEY % "s")
            tab.value(SETTLE)
            # lowest accuracy first again; of the chosen class the part that was missed
            assert tab.value(PIXEL % (2, 35, 20)) == [255, 176, 0, 255]
            tab.value(KEY % "Escape")
            assert tab.value("document.querySelectorAll('article.large').length") == 0
            # but of this test's reading
            assert [one for one in tab.complaints if "getImageData" not in one] == []
