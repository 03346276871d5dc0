"""The map of class embeddings: the projection against its definition, and dots where they should be."""

from pathlib import Path

import numpy as np
import pytest

from segmenter import class_map
from segmenter.checkpoint import save_model
from segmenter.class_map import class_embeddings, class_map_picture, project
from segmenter.config import default_palette
from segmenter.errors import ConfigError
from segmenter.images import read_image
from tests.networks import small_network


def test_the_plane_of_largest_variance() -> None:
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(16, 16)))[0]
    spread = np.array([5.0, 3.0, *[0.1] * 14])
    embeddings = random.normal(size=(40, 16)) * spread @ basis.T + 7
    places, shares = project(embeddings)
    values, vectors = np.linalg.eigh(np.cov(embeddings.T))
    np.testing.assert_allclose(shares, values[:-3:-1] / values.sum())
    centred = embeddings - embeddings.mean(0)
    np.testing.assert_allclose(np.abs(places), np.abs(centred @ vectors[:, :-3:-1]), atol=1e-9)
    assert (places[np.abs(places).argmax(0), (0, 1)] > 0).all()
    # turning the space turns nothing on the map
    np.testing.assert_allclose(project(embeddings @ basis)[0], places, atol=1e-9)


def test_few_and_equal_classes() -> None:
    with pytest.raises(ConfigError, match="2 classes: always lie on a line"):
        project(np.eye(2))
    places, shares = project(np.ones((4, 3)))
    assert not places.any()
    assert not shares.any()
    places, shares = project(np.arange(3.0)[:, None])
    assert shares.tolist() == [1.0, 0.0]
    assert not places[:, 1].any()


def test_what_a_network_knows_its_classes_by() -> None:
    mask, linear = small_network(), small_network("linear")
    np.testing.assert_array_equal(class_embeddings(mask), mask.decoder.cls_emb[0].detach().numpy())
    np.testing.assert_array_equal(class_embeddings(linear), linear.decoder.head.weight.detach().numpy())


def test_dots_stand_where_the_classes_do() -> None:
    palette = ((250, 0, 0), (0, 250, 0), (0, 0, 250))
    places = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.5]])
    picture = class_map_picture(places, np.array([0.6, 0.2]), ("left", "right", "above"), palette, "three")
    found = []
    for colour in palette:
        rows, columns = np.nonzero((picture == colour).all(-1))
        assert len(rows) > 30
        found.append((columns.mean(), rows.mean()))
    (x0, y0), (x1, y1), (x2, y2) = found
    assert y0 == pytest.approx(y1, abs=1)
    assert x2 == pytest.approx((x0 + x1) / 2, abs=1)
    # one scale along both axes
    assert y0 - y2 == pytest.approx((x1 - x0) / 4, abs=1)


def test_a_hundred_and_fifty_names_keep_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float, float, float]] = []
    find = class_map._free_place

    def remember(*arguments: object) -> tuple[float, float, float, float]:
        drawn.append(find(*arguments))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(class_map, "_free_place", remember)
    random = np.random.default_rng(0)
    places = random.normal(size=(10, 2))[random.integers(0, 10, 150)] * 3 + random.normal(size=(150, 2))
    names = [f"class number {index}" for index in range(150)]
    picture = class_map_picture(places, np.array([0.3, 0.2]), names, default_palette(150), "many")
    H, W = picture.shape[:2]
    boxes = np.array(drawn)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (W, H)).all()
    for index, a in enumerate(boxes):
        for b in boxes[index + 1 :]:
            assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


def test_class_map_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_network()
    save_model(model, tmp_path / "checkpoint")
    out = tmp_path / "out" / "map.png"
    assert class_map.main(["--checkpoint", str(tmp_path / "checkpoint"), "--out", str(out)]) == 0
    assert "5 classes drawn into" in capsys.readouterr().out
    assert read_image(out).shape == (960, 1280, 3)
    save_model(small_network(classes=("no", "yes")), tmp_path / "two")
    assert class_map.main(["--checkpoint", str(tmp_path / "two"), "--out", str(out)]) == 2
    assert "2 classes: always lie on a line" in capsys.readouterr().err
    assert class_map.main(["--checkpoint", str(tmp_path / "nothing"), "--out", str(out)]) == 2
    capsys.readouterr()
    for out, message in (
        (tmp_path / "map.txt", "wanted the name of a picture, such as map.png"),
        (tmp_path, "picture"),
    ):
        assert class_map.main(["--checkpoint", str(tmp_path / "checkpoint"), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
