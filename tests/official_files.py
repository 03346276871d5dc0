"""The official code's variant.yml, of a small network."""

VARIANT = """\
dataset_kwargs: {{dataset: {dataset}, normalization: vit}}
net_kwargs:
  backbone: {backbone}
  d_model: 64
  decoder: {{{decoder}}}
  distilled: {distilled}
  drop_path_rate: 0.1
  dropout: 0.0
  image_size: !!python/tuple
  - 64
  - 48
  n_cls: {classes}
  n_heads: {heads}
  n_layers: 2
  normalization: {normalization}
  patch_size: {patch}
"""


def write_variant(folder, **changes):
    values = {
        "dataset": "anything",
        "backbone": "vit_tiny_patch16_384",
        "decoder": "name: mask_transformer, n_layers: 1, drop_path_rate: 0.0, dropout: 0.1",
        "distilled": "false",
        "classes": 5,
        "normalization": "vit",
        "patch": 16,
        "heads": 2,
    }
    (folder / "variant.yml").write_text(VARIANT.format(**(values | changes)))
