"""What learns, how fast and in which precision: parameter groups, frozen blocks, optimisers, autocast types."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from segmenter.errors import ConfigError
from segmenter.model import Segmenter
from segmenter.training.options import OptimizerOptions

_QUANTITIES = {SGD: {"momentum_buffer"}, AdamW: {"step", "exp_avg", "exp_avg_sq"}}  # of a parameter's state
_NO_DECAY = ("pos_embed", "cls_token", "dist_token", "register_tokens", "cls_emb")


def parameter_groups(
    model: Segmenter, weight_decay: float, backbone_scale: float = 1.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups of named parameters that share weight decay and learning rate.

    `lr_scale` of a group multiplies the schedule's rate: 1 for the decoder, `backbone_scale` for the encoder's last
    norm, and `layer_decay` times what comes after it for each block and, first of all, the embeddings.
    Biases, norms, LayerScale factors, position embeddings and tokens are not decayed.
    Source: BEiT (Bao et al., ICLR 2022), appendix; ELECTRA before it.
    """
    groups: dict[tuple[float, bool], list[tuple[str, Tensor]]] = {}
    for name, parameter in model.named_parameters():
        decayed = parameter.ndim > 1 and not name.endswith(_NO_DECAY)
        scale = backbone_scale * layer_decay ** _blocks_after(name, len(model.encoder.blocks))
        groups.setdefault((scale if name.startswith("encoder.") else 1.0, decayed), []).append((name, parameter))
    return [
        {"params": named, "weight_decay": weight_decay if decayed else 0.0, "lr_scale": scale}
        for (scale, decayed), named in groups.items()
    ]


def _blocks_after(name: str, depth: int) -> int:
    """How many layers a parameter of the encoder is from its last norm: 1 for the last block, `depth` + 1 at most."""
    if name.startswith("encoder.norm."):
        return 0
    return depth - int(name.split(".")[2]) if name.startswith("encoder.blocks.") else depth + 1


def make_optimizer(model: Segmenter, options: OptimizerOptions) -> Optimizer:
    """SGD or AdamW over `parameter_groups`.

    Raises ConfigError for rates an optimiser cannot use.
    """
    scale = 1.0 if options.backbone_lr is None else options.backbone_lr / options.lr
    groups = parameter_groups(model, options.weight_decay, scale, options.layer_decay)
    try:
        if options.optimizer == "sgd":
            # not fused: that one fails where some parameters have momentum and others, just thawed, have none
            return SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov)
        return AdamW(groups, lr=options.lr, betas=options.betas, fused=True)
    except ValueError as error:
        raise ConfigError(f"{options.optimizer}: {error}; correct the option") from error


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group its share of the schedule's rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def set_training(model: Segmenter, frozen_blocks: int) -> None:
    """Put the network into training mode, but for its first blocks and the embeddings before them.

    Frozen parts get no gradient and behave as in evaluation: no dropout, no stochastic depth. With all blocks frozen,
    so is the encoder's last norm.
    """
    model.train()
    model.requires_grad_(True)
    if frozen_blocks <= 0:
        return
    encoder = model.encoder
    frozen: list[nn.Module] = [encoder.patch_embed, *list(encoder.blocks)[:frozen_blocks]]
    if frozen_blocks >= len(encoder.blocks):
        frozen.append(encoder.norm)
    for module in frozen:
        module.eval().requires_grad_(False)
    for token in (encoder.cls_token, encoder.dist_token, encoder.register_tokens, encoder.pos_embed):
        if token is not None:
            token.requires_grad_(False)


def autocast_type(amp: Literal["auto", "off", "bf16", "fp16"], device: torch.device) -> torch.dtype | None:
    """The type matrix products are computed in, or None for the parameters' own.

    Raises ConfigError for fp16 without a GPU.
    """
    if amp == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else None
    if amp == "fp16" and device.type != "cuda":
        raise ConfigError(f"--amp fp16 on {device}: training in fp16 needs a CUDA device; use --amp bf16 or off")
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether bf16 products are instructions of the device, not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by `quantity/parameter`, such as `exp_avg/encoder.norm.bias`."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    return tensors


def load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimiser the state of `optimizer_tensors`; of another kind's it takes nothing, and begins afresh.

    Raises KeyError for a parameter it does not have, ValueError for a shape that is not the parameter's.
    """
    current = optimizer.state_dict()
    indices = {
        name: (index, parameter)
        for group, saved in zip(optimizer.param_groups, current["param_groups"], strict=True)
        for name, index, parameter in zip(group["param_names"], saved["params"], group["params"], strict=True)
    }
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        quantity, _, name = key.partition("/")
        index, parameter = indices[name]
        if tensor.ndim and tensor.shape != parameter.shape:
            raise ValueError(f"{key} is {tuple(tensor.shape)}, wanted {tuple(parameter.shape)}")
        if quantity in _QUANTITIES[type(optimizer)]:
            state.setdefault(index, {})[quantity] = tensor
    optimizer.load_state_dict({**current, "state": state})
