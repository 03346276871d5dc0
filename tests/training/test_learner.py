"""One update: the same gradient however a batch is cut, the average of weights, clipping, and PyTorch's compiler."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from segmenter import load_model
from segmenter.config import SegmenterConfig
from segmenter.datasets import Subset, open_dataset
from segmenter.evaluation import evaluate_labels
from segmenter.inference import Inference, predictor
from segmenter.model import Segmenter
from segmenter.ranks import Ranks
from segmenter.training.data import Batch
from segmenter.training.learner import Learner
from segmenter.training.options import LengthOptions, MachineOptions, OptimizerOptions, TrainOptions
from tests.training.runs import assert_same_weights, losses, metrics, refuse, stop_after, train

CPU = torch.device("cpu")
RATES = OptimizerOptions(lr=0.1, momentum=0.0, amp="off")


@pytest.fixture
def steady(tiny_config: SegmenterConfig) -> SegmenterConfig:
    """A network without any chance in it."""
    encoder, decoder = replace(tiny_config.encoder, drop_path=0.0), replace(tiny_config.decoder, dropout=0.0)
    return replace(tiny_config, encoder=encoder, decoder=decoder)


def learner(config: SegmenterConfig, rates: OptimizerOptions, weights: Any = None, accumulate: int = 1) -> Learner:
    torch.manual_seed(0)
    machine = MachineOptions(accumulate=accumulate)
    options = TrainOptions(out=Path("none"), optimizer=rates, length=LengthOptions(batch=4), machine=machine)
    made = Learner(Segmenter(config), options, CPU, Ranks("cpu"), weights)
    made.freeze(0)
    return made


def batch() -> Batch:
    """Four images, of which the first is hardly labelled and the second not at all."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 3, (4, 32, 32), generator=generator, dtype=torch.uint8)
    labels[0, 1:], labels[1] = 255, 255
    return images, labels


def cut(whole: Batch, *sizes: int) -> list[Batch]:
    return list(zip(whole[0].split(sizes), whole[1].split(sizes), strict=True))


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 3.0, 1.0])], ids=["plain", "weighted"])
@pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (1, 1, 1, 1)])
def test_parts_of_a_batch_give_its_gradient(
    sizes: tuple[int, ...], weights: torch.Tensor | None, steady: SegmenterConfig
) -> None:
    images, labels = batch()
    truth = Segmenter(steady)
    whole, parts = learner(steady, RATES, weights), learner(steady, RATES, weights, len(sizes))
    truth.load_state_dict(whole.model.state_dict())
    loss = F.cross_entropy(truth(images), labels.long(), weights, ignore_index=255)
    loss.backward()
    for one in (whole, parts):
        got = one.update(cut((images, labels), *(sizes if one is parts else (4,))), 0, 0.1)
        assert got.item() == pytest.approx(loss.item(), rel=1e-6)
        for name, parameter in truth.named_parameters():
            assert parameter.grad is not None
            stepped = dict(one.model.named_parameters())[name]
            torch.testing.assert_close(stepped, parameter - 0.1 * parameter.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("most", [0.01, 0.0])
def test_clipping(most: float, steady: SegmenterConfig) -> None:
    one = learner(steady, replace(RATES, clip_grad=most), accumulate=2)
    before = torch.nn.utils.parameters_to_vector(one.model.parameters()).detach().clone()
    one.update(cut(batch(), 2, 2), 0, 0.1)
    moved = (torch.nn.utils.parameters_to_vector(one.model.parameters()) - before).norm().item()
    assert (moved == pytest.approx(0.1 * most, rel=1e-3)) if most else moved > 0.01


def test_the_average_is_that_of_all_updates(steady: SegmenterConfig) -> None:
    one = learner(steady, replace(RATES, ema=0.6))
    name = "decoder.proj_dec.weight"
    truth = dict(one.model.named_parameters())[name].detach().double().clone()
    for step in range(12):
        one.update([batch()], step, 0.1)
        share = min(0.6, (1 + step) / (10 + step))
        truth = share * truth + (1 - share) * dict(one.model.named_parameters())[name].detach().double()
        torch.testing.assert_close(dict(one.judged.named_parameters())[name].double(), truth, rtol=0, atol=1e-6)
    assert one.judged is one.average
    assert not any(parameter.requires_grad for parameter in one.judged.parameters())
    assert one.model.training


def test_the_average_is_judged_and_kept(tmp_path: Path) -> None:
    assert train(tmp_path, "--steps", "6", "--ema", "0.9", "--lr", "1e-2") == 0
    learning = load_file(tmp_path / "last" / "learning.safetensors")
    last, best = load_model(tmp_path / "last").state_dict(), load_model(tmp_path / "best")
    for name, tensor in best.state_dict().items():
        assert torch.equal(tensor, last[name]), name
    assert not torch.equal(last["encoder.pos_embed"], learning["encoder.pos_embed"])

    def miou(model: Segmenter) -> float:
        val = Subset(open_dataset("shapes", None, "val"), 7)
        return evaluate_labels(predictor(model, Inference(device="cpu")), val, progress=False).miou

    assert miou(best) == metrics(tmp_path)["miou"]
    best.load_state_dict(learning)
    assert miou(best) != metrics(tmp_path)["miou"]


def test_an_average_begins_and_ends_with_a_resumed_run(tmp_path: Path) -> None:
    for steps, ema in ((2, "0"), (4, "0.9"), (6, "0")):
        assert train(tmp_path, "--steps", str(steps), "--ema", ema, "--resume", "always") == 0
        assert (tmp_path / "last" / "learning.safetensors").exists() is (ema != "0")
        if ema != "0":
            learning = load_file(tmp_path / "last" / "learning.safetensors")
    # what was learnt went on, not the average
    assert list(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]
    last = load_file(tmp_path / "last" / "model.safetensors")
    moved = (last["encoder.pos_embed"] - learning["encoder.pos_embed"]).abs().max()
    assert moved < 3e-3  # two updates of AdamW at 1e-3


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """torch.compile without generated code, as far as the graph; the graphs it made."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def compile_by_backend(self: torch.nn.Module, **options: Any) -> None:
        self._compiled_call_impl = torch.compile(self._call_impl, backend=backend, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_by_backend)
    torch.compiler.reset()
    return graphs


def test_compiled_training_is_the_same_training(tmp_path: Path, quick_compiler: list[Any]) -> None:
    steps = ["--steps", "4", "--drop-path", "0", "--dropout", "0", "--freeze-encoder-blocks", "1", "--freeze-for", ".5"]
    assert train(tmp_path / "plain", *steps) == 0
    assert not quick_compiler
    assert train(tmp_path / "compiled", *steps, "--compile") == 0
    assert len(quick_compiler) == 2  # with a block frozen, and without
    plain, compiled = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert max(abs(plain[step] - compiled[step]) for step in plain) <= 1e-6


def test_a_compiled_run_is_resumed(tmp_path: Path, quick_compiler: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--steps", "6", "--compile", "--ema", "0.9"]  # and chance in the network
    assert train(tmp_path / "whole", *options) == 0
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert train(tmp_path / "parts", *options, "--save-every-seconds", "0") == 130
    assert train(tmp_path / "parts", *options) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    assert quick_compiler


def test_a_missing_compiler_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(graph: Any, inputs: Any) -> Any:
        raise torch._inductor.exc.InvalidCxxCompiler  # what torch.compile raises where there is no g++

    compiling = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiling(function, backend=without))
    torch.compiler.reset()
    error = refuse(capsys, tmp_path, "--steps", "2", "--compile")
    assert error.startswith("error: --compile: ")
    assert "leave the option out" in error


@pytest.mark.slow
def test_compiled_for_real(tmp_path: Path) -> None:
    steps = ["--steps", "3", "--drop-path", "0", "--dropout", "0", "--optimizer", "sgd", "--decoder", "linear"]
    assert train(tmp_path / "plain", *steps) == 0
    assert train(tmp_path / "compiled", *steps, "--compile") == 0
    plain, compiled = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert max(abs(plain[step] - compiled[step]) for step in plain) <= 1e-4


def test_deterministic_refuses_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update = Learner.update

    def unsure(self: Learner, *arguments: Any) -> torch.Tensor:
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))  # one of those PyTorch has no deterministic way for
        return update(self, *arguments)

    monkeypatch.setattr(Learner, "update", unsure)
    assert train(tmp_path / "sure", "--steps", "2") == 0
    error = refuse(capsys, tmp_path / "unsure", "--steps", "2", "--deterministic")
    assert error.startswith("error: --deterministic: put_")
    assert not torch.are_deterministic_algorithms_enabled()
