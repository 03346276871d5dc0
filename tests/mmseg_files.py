"""Small Segmenters as mmsegmentation defines and names them, with random weights, and its checkpoints of them.

Modules are PyTorch's own, under the names mmsegmentation's have (0.2x to 1.2): its attention wraps
`torch.nn.MultiheadAttention`, and its LayerNorms are called `ln1` and `ln2`.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

P = 16


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x, need_weights=False)[0]


class FeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        first = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.0))
        self.layers = nn.Sequential(first, nn.Linear(hidden, width), nn.Dropout(0.0))


class Layer(nn.Module):
    def __init__(self, width, heads, eps):
        super().__init__()
        self.ln1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.ln2 = nn.LayerNorm(width, eps)
        self.ffn = FeedForward(width, 4 * width)

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.ffn.layers(self.ln2(x))


class Backbone(nn.Module):
    """A VisionTransformer with a final norm: [B, 3, H, W] -> [B, C, h, w]."""

    def __init__(self, width, depth, heads, grid, eps, resize):
        super().__init__()
        self.grid, self.resize = grid, resize
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], width))
        self.patch_embed = nn.Module()
        self.patch_embed.projection = nn.Conv2d(3, width, P, P)
        self.layers = nn.ModuleList(Layer(width, heads, eps) for _ in range(depth))
        self.ln1 = nn.LayerNorm(width, eps)

    def forward(self, image):
        x = self.patch_embed.projection(image)
        h, w = x.shape[2:]
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), 1)
        position = self.pos_embed
        if x.shape[1] != position.shape[1]:
            plane = position[:, 1:].transpose(1, 2).unflatten(2, self.grid)
            plane = F.interpolate(plane, size=(h, w), mode=self.resize, align_corners=False)
            position = torch.cat((position[:, :1], plane.flatten(2).transpose(1, 2)), 1)
        x = x + position
        for layer in self.layers:
            x = layer(x)
        return self.ln1(x)[:, 1:].transpose(1, 2).unflatten(2, (h, w))


class MaskHead(nn.Module):
    """A SegmenterMaskTransformerHead: [B, C, h, w] -> [B, K, h, w]."""

    def __init__(self, width, inner, depth, heads, classes, eps):
        super().__init__()
        self.classes = classes
        self.dec_proj = nn.Linear(width, inner)
        self.cls_emb = nn.Parameter(torch.zeros(1, classes, inner))
        self.layers = nn.ModuleList(Layer(inner, heads, eps) for _ in range(depth))
        self.patch_proj = nn.Linear(inner, inner, bias=False)
        self.classes_proj = nn.Linear(inner, inner, bias=False)
        self.decoder_norm = nn.LayerNorm(inner, eps)
        self.mask_norm = nn.LayerNorm(classes, eps)

    def forward(self, features):
        x = self.dec_proj(features.flatten(2).transpose(1, 2))
        x = torch.cat((x, self.cls_emb.expand(len(x), -1, -1)), 1)
        for layer in self.layers:
            x = layer(x)
        x = self.decoder_norm(x)
        patches = F.normalize(self.patch_proj(x[:, : -self.classes]), dim=2)
        classes = F.normalize(self.classes_proj(x[:, -self.classes :]), dim=2)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))
        return masks.transpose(1, 2).unflatten(2, features.shape[2:])


class LinearHead(nn.Module):
    """A FCNHead without convolutions: [B, C, h, w] -> [B, K, h, w]."""

    def __init__(self, width, classes):
        super().__init__()
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, features):
        return self.conv_seg(features)


class Network(nn.Module):
    def __init__(
        self, decoder="mask", *, width=128, heads=2, grid=(4, 4), eps=1e-6, resize="bicubic", inner=128, inner_heads=2,
        inner_eps=1e-5, classes=5,
    ):  # fmt: skip
        super().__init__()
        self.backbone = Backbone(width, 2, heads, grid, eps, resize)
        mask = decoder == "mask"
        self.decode_head = (
            MaskHead(width, inner, 2, inner_heads, classes, inner_eps) if mask else LinearHead(width, classes)
        )

    def forward(self, image):
        size = image.shape[2:]
        return F.interpolate(self.decode_head(self.backbone(image)), size=size, mode="bilinear", align_corners=False)


def network(seed=0, *args, **settings):
    """In eval mode, with weights large enough that each of them matters."""
    torch.manual_seed(seed)
    model = Network(*args, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5))
    return model


NAMES = ("wall", "road", "tree", "sky", "person")
COLOURS = [[120, 120, 120], [140, 140, 140], [4, 200, 3], [6, 230, 230], [150, 5, 61]]
_TAIL = "test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(48, 48)))\n"
BACKBONE = (
    "backbone=dict(\n        type='VisionTransformer', img_size=(64, 64), patch_size=16, embed_dims=128,\n"
    "        num_layers=2, num_heads=2, drop_path_rate=0.1, final_norm=True, with_cls_token=True,\n"
    "        norm_cfg=dict(type='LN', eps=1e-06, requires_grad=True), interpolate_mode='bicubic'),\n"
)
HEAD = "decode_head=dict(type='SegmenterMaskTransformerHead', num_heads=2, num_layers=2, num_classes=5),\n"
# the texts that releases 0.x and 1.x keep, with what a network has in place of theirs
CONFIG_0 = (
    "norm_cfg = dict(type='BN')\nmodel = dict(\n    type='EncoderDecoder',\n    pretrained='vit.pth',\n"
    f"    {BACKBONE}    {HEAD}    train_cfg=dict(),\n    {_TAIL}"
    "img_norm_cfg = dict(\n    mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)\n"
)
CONFIG_1 = (
    "model = dict(\n    data_preprocessor=dict(\n        bgr_to_rgb=True, mean=[127.5, 127.5, 127.5], size=(64, 64),\n"
    f"        std=[127.5, 127.5, 127.5], type='SegDataPreProcessor'),\n    {BACKBONE}    {HEAD}    {_TAIL}"
    "train_pipeline = [dict(type='LoadImageFromFile')]\n"
)
META_0 = {"mmseg_version": "0.20.2", "epoch": 1, "config": CONFIG_0, "CLASSES": NAMES, "PALETTE": COLOURS}
META_1 = {"cfg": CONFIG_1, "dataset_meta": {"classes": NAMES, "palette": COLOURS, "reduce_zero_label": True}}


def checkpoint(model, meta=META_0, more=None):
    """A checkpoint as `torch.save` is given it; more: tensors beside the network's."""
    return {"meta": meta, "state_dict": OrderedDict(model.state_dict()) | (more or {})}
