"""The training loss against its definition in float64, and where there is nothing to learn from."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segmenter.errors import ConfigError
from segmenter.training.loss import class_weights, labelled, segmentation_loss


def case(classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    masks = 1 + torch.randn(2, classes, 4, 5, generator=generator)
    labels = torch.randint(0, classes, (2, 30, 37), generator=generator, dtype=torch.uint8)
    labels[:, :4] = 255
    return masks, labels


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 0.1, 3.0]])
@pytest.mark.parametrize(
    ("patch", "stride"), [(8, 1), (8, 2), (8, 4), (8, 8), (9, 1), (9, 3), (9, 9), (14, 2), (14, 7)]
)
def test_definition(patch: int, stride: int, weights: list[float] | None) -> None:
    """Logits of the whole image, each compared with the label of its own pixel: the loss and its gradient."""
    masks, labels = case()
    masks.requires_grad_()
    loss = segmentation_loss(masks, labels, patch, stride, None if weights is None else torch.tensor(weights))
    (gradient,) = torch.autograd.grad(loss, masks)
    exact = masks.detach().double().requires_grad_()
    logits = F.interpolate(exact, (4 * patch, 5 * patch), mode="bilinear")
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for image in range(2):
        for y in range(stride // 2, 30, stride):
            for x in range(stride // 2, 37, stride):
                label = int(labels[image, y, x])
                if label != 255:
                    share = 1.0 if weights is None else weights[label]
                    total = total - share * logits[image, :, y, x].log_softmax(0)[label]
                    count += share
    (truth,) = torch.autograd.grad(total / count, exact)
    assert loss.item() == pytest.approx(float(total.detach()) / count, rel=1e-6)
    torch.testing.assert_close(gradient.double(), truth, rtol=0, atol=1e-6 * float(truth.abs().max()))


@pytest.mark.parametrize(("patch", "stride"), [(8, 1), (9, 3), (14, 7), (15, 5)])
def test_an_odd_stride_compares_an_image_made_smaller(patch: int, stride: int) -> None:
    """The middles of such steps are pixels: the logits are those of an image of 1 / stride."""
    masks, _ = case()
    labels = torch.randint(0, 5, (2, 4 * patch, 5 * patch), generator=torch.Generator().manual_seed(0))
    small = F.interpolate(masks.double(), (4 * patch // stride, 5 * patch // stride), mode="bilinear")
    truth = F.cross_entropy(small, labels[:, stride // 2 :: stride, stride // 2 :: stride])
    assert segmentation_loss(masks, labels, patch, stride).item() == pytest.approx(truth.item(), rel=1e-6)


def test_mixed_precision_around_it_changes_nothing() -> None:
    masks, labels = case()
    alone = segmentation_loss(masks, labels, 8, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert segmentation_loss(masks, labels, 8, 2) == alone


@pytest.mark.parametrize("weights", [None, torch.ones(5)])
def test_nothing_labelled_is_no_loss_and_no_gradient(weights: torch.Tensor | None) -> None:
    masks, labels = case()
    masks.requires_grad_()
    loss = segmentation_loss(masks, torch.full_like(labels, 255), 8, 1, weights)
    loss.backward()
    assert loss.item() == 0
    assert masks.grad is not None
    assert (masks.grad == 0).all()


def test_ignored_pixels_get_no_gradient() -> None:
    masks, labels = case()
    masks.requires_grad_()
    labels[0] = 255
    segmentation_loss(masks, labels, 8).backward()
    assert masks.grad is not None
    assert (masks.grad[0] == 0).all()
    assert (masks.grad[1] != 0).any()


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0])], ids=["plain", "weighted"])
def test_parts_of_a_batch_add_up(weights: torch.Tensor | None) -> None:
    masks, labels = case()
    labels[0, 5:] = 255  # far fewer labelled pixels than in the other
    counts = [labelled(part, 2, weights) for part in labels.split(1)]
    assert counts[0] < counts[1] / 4
    whole = segmentation_loss(masks, labels, 8, 2, weights)
    parts = [
        segmentation_loss(mask, truth, 8, 2, weights, count=sum(counts, torch.zeros(())))
        for mask, truth in zip(masks.split(1), labels.split(1), strict=True)
    ]
    torch.testing.assert_close(sum(parts, torch.zeros(())), whole, rtol=1e-6, atol=0)


def test_the_deterministic_way_is_the_same_loss() -> None:
    masks, labels = case()
    masks.requires_grad_()
    plain = segmentation_loss(masks, labels, 8)
    (gradient,) = torch.autograd.grad(plain, masks)
    torch.use_deterministic_algorithms(True)
    try:
        other = segmentation_loss(masks, labels, 8)
        (its,) = torch.autograd.grad(other, masks)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(other, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(its, gradient, rtol=1e-5, atol=1e-8)


def test_stride_must_divide_the_patch() -> None:
    masks, labels = case()
    with pytest.raises(ConfigError, match="loss stride 3 does not divide the patch size 8"):
        segmentation_loss(masks, labels, 8, 3)


def test_class_weights() -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[0, 0] = 1  # one pixel
    labels[1] = 255
    labels[2:5] = 3
    weights = class_weights([labels, labels], 5).numpy()
    share = np.array([59, 1, 0, 30, 0]) / 90
    assert weights.dtype == np.float32
    assert (weights * share).sum() == pytest.approx(1)
    np.testing.assert_allclose(weights[1] / weights[0], np.sqrt(59), rtol=1e-6)
    np.testing.assert_allclose(weights[3] / weights[0], np.sqrt(59 / 30), rtol=1e-6)
    assert weights[2] == weights[4] == weights[1]  # never occur in what was looked at: as rare as the rarest


def test_a_class_that_a_sample_lacks_weighs_no_less_than_those_it_shows() -> None:
    shown, rare = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    shown[0, 0] = 1
    rare[0] = 2
    sample, all_labels = class_weights([shown], 3), class_weights([shown] * 999 + [rare], 3)
    assert sample[2] == sample[1] > sample[0]
    assert all_labels[2] > all_labels[1] > all_labels[0]


def test_class_weights_without_labels() -> None:
    assert class_weights([np.full((4, 4), 255, np.uint8)], 3).tolist() == [1, 1, 1]
