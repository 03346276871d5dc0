import json

import pytest
import torch

from segmenter.config import VARIANTS, DecoderConfig, SegmenterConfig, default_palette, variant
from segmenter.errors import ConfigError
from segmenter.model import Segmenter


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_builds_and_survives_json(name):
    config = variant(name)
    with torch.device("meta"):
        Segmenter(config)
    assert SegmenterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# millions of parameters as the official model list states them
@pytest.mark.parametrize(
    ("name", "millions"), [("Seg-Ti-Mask/16", 7), ("Seg-S-Mask/16", 27), ("Seg-B-Mask/16", 106), ("Seg-L-Mask/16", 334)]
)
def test_parameter_counts_are_the_published_ones(name, millions):
    with torch.device("meta"):
        model = Segmenter(variant(name))
    # the published counts include the unused ImageNet head of 1000 classes
    head = 1000 * (model.config.encoder.width + 1)
    count = (sum(parameter.numel() for parameter in model.parameters()) + head) / 1e6
    assert abs(count - millions) / millions < 0.06


def test_names_are_read_leniently_and_unknown_ones_listed():
    assert variant("b-mask/16").name == "Seg-B-Mask/16"
    assert variant("seg-deit-ti/16").encoder.distilled
    with pytest.raises(ConfigError, match="Seg-Ti/16"):
        variant("Seg-XXL/16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 7}, "patch size 7"),
        ({"heads": 5}, "5 heads"),
        ({"image_size": (500, 512)}, "multiples"),
        ({"depth": 0}, "encoder depth 0: wanted a whole number, at least 1"),
        ({"position_resize": "nearest"}, "position resize 'nearest'"),
        ({"depth": True}, "encoder depth True"),
        ({"heads": 0}, "encoder heads 0"),
        ({"width": -192}, "encoder width -192"),
        ({"width": 192.0}, r"encoder width 192\.0"),
        ({"mlp_width": 0}, "encoder mlp width 0"),
        ({"registers": -1}, "encoder registers -1: wanted 0 or more"),
    ],
)
def test_impossible_encoders_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        variant("Seg-Ti/16", **change)


@pytest.mark.parametrize("change", [{"heads": 0}, {"depth": -1}, {"depth": 0}, {"width": -64}, {"mlp_width": 0}])
def test_impossible_decoders_are_refused(change):
    with pytest.raises(ConfigError, match=rf"decoder {next(iter(change)).replace('_', ' ')} .*at least 1"):
        DecoderConfig(**change)
    with pytest.raises(ConfigError, match="decoder width 192 cannot be split over 5 heads"):
        DecoderConfig(heads=5)


def test_classes_and_colours_must_match():
    with pytest.raises(ConfigError, match="at least one class"):
        SegmenterConfig()
    with pytest.raises(ConfigError, match="2 colours for 1 classes"):
        SegmenterConfig(classes=("a",), palette=((0, 0, 0), (1, 1, 1)))


def test_default_palette_is_distinct():
    assert len(set(default_palette(255))) == 255


def test_a_configuration_from_before_rotary_positions_is_read():
    values = variant("Seg-Ti/16").to_dict()
    assert values["encoder"].pop("positions") == "learnt"
    assert SegmenterConfig.from_dict(json.loads(json.dumps(values))) == variant("Seg-Ti/16")
    values["encoder"]["positions"] = 3
    with pytest.raises(ConfigError, match="encoder positions 3: wanted text"):
        SegmenterConfig.from_dict(values)


@pytest.mark.parametrize("broken", [{}, {"encoder": 3}, {"encoder": {"image_size": [512, 512], "wings": 2}}])
def test_broken_configurations_are_named_as_such(broken):
    with pytest.raises(ConfigError, match="not a Segmenter configuration"):
        SegmenterConfig.from_dict(broken)
