"""A network nobody has trained, to be timed: seeded random weights that give labels worth comparing."""

import torch
from torch import nn

from segmenter.config import SegmenterConfig
from segmenter.model import Segmenter
from segmenter.vit import Attention


def random_model(config: SegmenterConfig, seed: int = 0) -> Segmenter:
    """A network of random weights with activations as large as a trained one's and labels that vary over an image.

    Weights are scaled by fan-in. Attention would still average all tokens into one and label every pixel alike, and
    comparing labels would then find nothing; so it is made to look at few tokens and to add less than it would.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Segmenter(config).eval()
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        for module in model.modules():
            if isinstance(module, Attention):
                C = module.proj.in_features
                module.qkv.weight.data[: 2 * C] *= 2.0
                module.proj.weight.data *= 0.5
        model.encoder.patch_embed.proj.weight.data *= 2.0
        for name, parameter in model.named_parameters():
            if name.endswith(("pos_embed", "cls_emb")):
                nn.init.trunc_normal_(parameter, std=1.0)
    return model
