"""Which parameters learn at what rate, what stays frozen, and which precision a device gets."""

from dataclasses import replace

import pytest
import torch

from segmenter.config import SegmenterConfig, variant
from segmenter.errors import ConfigError
from segmenter.model import Segmenter
from segmenter.training.optimizer import (
    autocast_type,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
    parameter_groups,
    set_lr,
    set_training,
)
from segmenter.training.options import OptimizerOptions

CPU = torch.device("cpu")


@pytest.fixture
def steady_model(tiny_config: SegmenterConfig) -> Segmenter:
    """A seeded network without any chance in it."""
    torch.manual_seed(0)
    steady = replace(
        tiny_config,
        encoder=replace(tiny_config.encoder, drop_path=0.0),
        decoder=replace(tiny_config.decoder, dropout=0.0),
    )
    return Segmenter(steady)


def one_update(model: Segmenter, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    optimizer.step()


def test_groups_hold_every_parameter_once(tiny_model: Segmenter) -> None:
    names = [name for group in parameter_groups(tiny_model, 0.1) for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in tiny_model.named_parameters())


def test_decay_and_rates(tiny_model: Segmenter) -> None:
    options = OptimizerOptions(optimizer="adamw", lr=1e-3, backbone_lr=1e-4, weight_decay=0.05)
    optimizer = make_optimizer(tiny_model, options)
    set_lr(optimizer, 5e-4)
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            spared = name.endswith((".bias", "pos_embed", "cls_token", "cls_emb")) or "norm" in name
            assert group["weight_decay"] == (0 if spared else 0.05), name
            assert group["lr"] == pytest.approx(5e-5 if name.startswith("encoder.") else 5e-4), name


def test_rates_fall_from_layer_to_layer(tiny_model: Segmenter) -> None:
    rates = OptimizerOptions(optimizer="adamw", lr=1e-3, backbone_lr=1e-4, layer_decay=0.5)
    optimizer = make_optimizer(tiny_model, rates)
    set_lr(optimizer, 1e-3)
    expected = {
        "decoder.": 1e-3,
        "encoder.norm.": 1e-4,
        "encoder.blocks.1.": 0.5e-4,
        "encoder.blocks.0.": 0.25e-4,
        "encoder.patch_embed.": 0.125e-4,
        "encoder.cls_token": 0.125e-4,
        "encoder.pos_embed": 0.125e-4,
    }
    seen = set()
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            (prefix,) = (prefix for prefix in expected if name.startswith(prefix))
            assert group["lr"] == pytest.approx(expected[prefix]), name
            seen.add(prefix)
    assert seen == set(expected)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_that_of_its_definition(tiny_model: Segmenter, nesterov: bool) -> None:
    """Sutskever et al. 2013, the velocity as PyTorch and timm write it."""
    optimizer = make_optimizer(tiny_model, OptimizerOptions(lr=0.5, momentum=0.75, nesterov=nesterov))
    weight = tiny_model.encoder.norm.bias
    wanted, velocity = weight.detach().double(), torch.zeros(weight.shape, dtype=torch.float64)
    for gradient in (1.0, -2.0, 4.0):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        velocity = 0.75 * velocity + gradient
        wanted = wanted - 0.5 * (gradient + 0.75 * velocity if nesterov else velocity)
        assert torch.equal(weight.detach().double(), wanted)  # every step is exact in float32


def test_layer_scale_and_distillation_token_are_not_decayed() -> None:
    config = variant("Seg-DeiT-Ti/16", 2, layer_scale=True, depth=1, image_size=(32, 32))
    for group in parameter_groups(Segmenter(config), 0.05):
        for name, _ in group["params"]:
            if name.endswith(("gamma", "dist_token")):
                assert group["weight_decay"] == 0


def test_a_network_with_rotary_positions_has_none_that_learn(steady_model: Segmenter) -> None:
    config = steady_model.config
    model = Segmenter(replace(config, encoder=replace(config.encoder, positions="rotary", registers=2)))
    names = [name for group in parameter_groups(model, 0.1, layer_decay=0.5) for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert not [name for name in names if "pos_embed" in name or "rotary" in name]
    optimizer = make_optimizer(model, OptimizerOptions(lr=0.1, weight_decay=0.1, layer_decay=0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    set_training(model, 1)
    one_update(model, optimizer)
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    outside = {"cls_token", "register_tokens", "patch_embed.proj.weight", "patch_embed.proj.bias", "rotary.periods"}
    assert same == {f"encoder.{name}" for name in outside} | {name for name in before if "encoder.blocks.0." in name}


@pytest.mark.parametrize("blocks", [0, 1, 2, 9])
def test_frozen_parts_do_not_move(steady_model: Segmenter, blocks: int) -> None:
    before = {name: tensor.clone() for name, tensor in steady_model.state_dict().items()}
    optimizer = make_optimizer(steady_model, OptimizerOptions(lr=0.1, weight_decay=0.1))
    set_training(steady_model, blocks)
    one_update(steady_model, optimizer)
    frozen = {f"encoder.blocks.{index}." for index in range(blocks)}
    if blocks:
        frozen |= {"encoder.patch_embed.", "encoder.pos_embed", "encoder.cls_token"}
    if blocks >= 2:
        frozen |= {"encoder.norm."}
    for name, tensor in steady_model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith(tuple(frozen)), name
    assert [block.training for block in steady_model.encoder.blocks] == [blocks < 1, blocks < 2]
    # and thaws
    set_training(steady_model, 0)
    assert all(parameter.requires_grad for parameter in steady_model.parameters())
    assert all(module.training for module in steady_model.modules())


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_state_by_name_survives_thawing(steady_model: Segmenter, kind: str) -> None:
    model = steady_model
    options = OptimizerOptions(optimizer=kind, lr=1e-2)  # type: ignore[arg-type]
    optimizer = make_optimizer(model, options)
    set_training(model, 1)
    one_update(model, optimizer)
    copy = Segmenter(model.config)
    copy.load_state_dict(model.state_dict())
    second = make_optimizer(copy, options)
    load_optimizer(second, {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()})
    assert optimizer_tensors(second).keys() == optimizer_tensors(optimizer).keys()
    for each, its in ((model, optimizer), (copy, second)):
        set_training(each, 0)
        for _ in range(2):
            one_update(each, its)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, copy.state_dict()[name]), name


@pytest.mark.parametrize(("before", "after"), [("sgd", "adamw"), ("adamw", "sgd")])
def test_state_of_another_optimiser_is_not_taken(steady_model: Segmenter, before: str, after: str) -> None:
    first = make_optimizer(steady_model, OptimizerOptions(optimizer=before))  # type: ignore[arg-type]
    one_update(steady_model, first)
    second = make_optimizer(steady_model, OptimizerOptions(optimizer=after))  # type: ignore[arg-type]
    load_optimizer(second, optimizer_tensors(first))
    assert not optimizer_tensors(second)
    one_update(steady_model, second)
    kept = {key.partition("/")[0] for key in optimizer_tensors(second)}
    assert kept == ({"momentum_buffer"} if after == "sgd" else {"step", "exp_avg", "exp_avg_sq"})


def test_state_of_another_network_is_refused(tiny_model: Segmenter) -> None:
    optimizer = make_optimizer(tiny_model, OptimizerOptions())
    with pytest.raises(ValueError, match="wanted"):
        load_optimizer(optimizer, {"momentum_buffer/encoder.norm.bias": torch.zeros(7)})
    with pytest.raises(KeyError, match="no such"):
        load_optimizer(optimizer, {"momentum_buffer/no such": torch.zeros(7)})


def test_rates_that_cannot_be(tiny_model: Segmenter) -> None:
    with pytest.raises(ConfigError, match=r"--lr 0\.0: wanted more than 0"):
        OptimizerOptions(lr=0.0)
    with pytest.raises(ConfigError, match=r"--momentum -1\.0: wanted a share"):
        OptimizerOptions(momentum=-1.0)
    with pytest.raises(ConfigError, match="sgd: Nesterov momentum requires a momentum"):
        make_optimizer(tiny_model, OptimizerOptions(momentum=0.0, nesterov=True))
    with pytest.raises(ConfigError, match="adamw"):
        make_optimizer(tiny_model, OptimizerOptions(optimizer="adamw", betas=(0.9, 1.5)))


def test_precision() -> None:
    assert autocast_type("off", CPU) is None
    assert autocast_type("bf16", CPU) is torch.bfloat16
    assert autocast_type("auto", CPU) in (None, torch.bfloat16)
    assert autocast_type("fp16", torch.device("cuda")) is torch.float16
    with pytest.raises(ConfigError, match="fp16"):
        autocast_type("fp16", CPU)
