"""Files of small ViTs with random weights, under timm's, DINOv2's and Google's names."""

import numpy as np
import torch
from safetensors.torch import save_file

C, HIDDEN, DEPTH, P, SIDE = 128, 512, 2, 16, 4
HEADS = C // 64


def timm_state(seed=0, *, distilled=False, scaled=False, registers="", class_position=True, depth=DEPTH):
    """Random ViT weights under timm's key names, large enough that each of them matters."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape, mean=0.0, scale=None):
        scale = shape[-1] ** -0.5 if scale is None else scale
        return torch.randn(*shape, generator=random) * scale + mean

    tokens = (1 + distilled) if class_position else 0
    state = {
        "cls_token": draw(1, 1, C),
        "pos_embed": draw(1, tokens + SIDE * SIDE, C),
        "patch_embed.proj.weight": draw(C, 3, P, P, scale=0.05),
        "patch_embed.proj.bias": draw(C),
        "norm.weight": draw(C, mean=1.0, scale=0.3),
        "norm.bias": draw(C),
        "head.weight": draw(10, C),
        "head.bias": draw(10),
    }
    if distilled:
        state |= {"dist_token": draw(1, 1, C), "head_dist.weight": draw(10, C), "head_dist.bias": draw(10)}
    if registers:
        state[registers] = draw(1, 3, C)
    for index in range(depth):
        block = f"blocks.{index}."
        for name, shape in (
            ("attn.qkv", (3 * C, C)),
            ("attn.proj", (C, C)),
            ("mlp.fc1", (HIDDEN, C)),
            ("mlp.fc2", (C, HIDDEN)),
        ):
            state[f"{block}{name}.weight"], state[f"{block}{name}.bias"] = draw(*shape), draw(shape[0], scale=0.2)
        for name in ("norm1", "norm2"):
            state[f"{block}{name}.weight"], state[f"{block}{name}.bias"] = draw(C, mean=1.0, scale=0.3), draw(C)
        if scaled:
            state |= {
                f"{block}ls1.gamma": draw(C, mean=0.5, scale=0.3),
                f"{block}ls2.gamma": draw(C, mean=0.5, scale=0.3),
            }
    return state


def save(state, path):
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


KINDS = {
    "augreg": {},
    "deit": {"distilled": True},
    "dinov2": {"scaled": True},
    "dinov2 with registers": {"scaled": True, "registers": "register_tokens"},
    "timm's dinov2 with registers": {"scaled": True, "registers": "reg_token", "class_position": False},
    "deit-3": {"scaled": True, "class_position": False},
}


def google_arrays(seed=0, heads=4, prefix=""):
    """Random ViT weights in the layout of Google's files."""
    random = np.random.default_rng(seed)
    D = C // heads

    def draw(*shape, mean=0.0, scale=0.1):
        return (random.standard_normal(shape) * scale + mean).astype(np.float32)

    arrays = {
        "cls": draw(1, 1, C),
        "embedding/kernel": draw(P, P, 3, C, scale=0.05),
        "embedding/bias": draw(C),
        "Transformer/posembed_input/pos_embedding": draw(1, 1 + SIDE * SIDE, C),
        "Transformer/encoder_norm/scale": draw(C, mean=1.0),
        "Transformer/encoder_norm/bias": draw(C),
        "pre_logits/kernel": draw(C, C),
        "pre_logits/bias": draw(C),
        "head/kernel": draw(C, 10),
        "head/bias": draw(10),
    }
    for index in range(DEPTH):
        block = f"Transformer/encoderblock_{index}/"
        attention = block + "MultiHeadDotProductAttention_1/"
        for part in ("query", "key", "value"):
            arrays |= {f"{attention}{part}/kernel": draw(C, heads, D), f"{attention}{part}/bias": draw(heads, D)}
        arrays |= {f"{attention}out/kernel": draw(heads, D, C), f"{attention}out/bias": draw(C)}
        for name in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{block}{name}/scale": draw(C, mean=1.0), f"{block}{name}/bias": draw(C)}
        arrays |= {
            f"{block}MlpBlock_3/Dense_0/kernel": draw(C, HIDDEN),
            f"{block}MlpBlock_3/Dense_0/bias": draw(HIDDEN),
        }
        arrays |= {f"{block}MlpBlock_3/Dense_1/kernel": draw(HIDDEN, C), f"{block}MlpBlock_3/Dense_1/bias": draw(C)}
    return {prefix + key: value for key, value in arrays.items()}


def without(state, *names):
    return {key: value for key, value in state.items() if key not in names}
