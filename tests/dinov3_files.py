"""Small ViTs of DINOv3's with random weights under Meta's names, and the same under timm's and Hugging Face's."""

import re

import torch

from tests.vit_files import C, timm_state, without

TOKENS = 4
QUARTER = 16  # periods of a head of 64


def meta_state(seed=0, **kind):
    """Random weights under the names of Meta's code, with biases of keys that their mask takes away."""
    state = without(timm_state(seed, scaled=True, **kind), "pos_embed", "head.weight", "head.bias")
    random = torch.Generator().manual_seed(seed + 1)
    mask = torch.ones(3 * C)
    mask[C : 2 * C] = 0
    for name in list(state):
        if name.endswith("qkv.bias"):
            state[f"{name}_mask"] = mask.clone()
    return state | {
        "storage_tokens": torch.randn(1, TOKENS, C, generator=random),
        "mask_token": torch.randn(1, C, generator=random),
        # as they come, held in bfloat16 for a while
        "rope_embed.periods": exact_periods().bfloat16().float(),
    }


def exact_periods():
    return torch.tensor([100 ** (k / QUARTER) for k in range(QUARTER)])


def timm_names(state, biases=True):
    """As timm stores them: no periods, and biases of queries and values alone, or none."""
    found = {}
    for key, value in state.items():
        if key.endswith("qkv.bias"):
            if biases:
                found[key.replace("qkv.bias", "q_bias")] = value[:C].clone()
                found[key.replace("qkv.bias", "v_bias")] = value[2 * C :].clone()
        elif not key.endswith(("bias_mask", "periods", "mask_token")):
            name = re.sub(r"ls([12])\.gamma", r"gamma_\1", key)
            found["reg_token" if name == "storage_tokens" else name] = value
    return found


def hugging_face_names(state, biases=True):
    """As transformers stores them: three projections, no bias of keys, no periods."""
    found = {}
    for key, value in state.items():
        if key.endswith(("bias_mask", "periods")):
            continue
        name = re.sub(r"^blocks\.", "layer.", key)
        if ".attn.qkv." in name:
            kind = name.rsplit(".", 1)[1]
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                if kind == "weight" or (biases and letter != "k"):
                    found[name.replace("attn.qkv", f"attention.{letter}_proj")] = part.clone()
            continue
        for theirs, ours in (
            (r"^(cls_token|mask_token)$", r"embeddings.\1"),
            (r"^storage_tokens$", "embeddings.register_tokens"),
            (r"^patch_embed\.proj", "embeddings.patch_embeddings"),
            (r"\.attn\.proj\.", ".attention.o_proj."),
            (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
            (r"\.mlp\.fc1\.", ".mlp.up_proj."),
            (r"\.mlp\.fc2\.", ".mlp.down_proj."),
        ):
            name = re.sub(theirs, ours, name)
        found[name] = value[None] if name.endswith("mask_token") else value
    return found


NAMINGS = {
    "meta": lambda state: state,
    "timm": timm_names,
    "timm without biases": lambda state: timm_names(state, biases=False),
    "hugging face": hugging_face_names,
    "hugging face without biases": lambda state: hugging_face_names(state, biases=False),
}
