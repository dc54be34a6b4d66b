"""SAM's picture encoder (arXiv 2304.02643) of transformers, as a part of other models."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import Rule
from bigvlm.hub import fields

_LAYER = (
  *rules.norm("layer_norm1", "norm1"),
  *rules.joint("attn.qkv.", "attn", "attn.proj"),
  Rule("attn.rel_pos_h", "attn/rows"),
  Rule("attn.rel_pos_w", "attn/columns"),
  *rules.norm("layer_norm2", "norm2"),
  *rules.mlp("mlp.", "mlp", "lin1", "lin2"),
)
# Axes of the kernel of a convolution.
CONV = "o i p q -> p q i o"


def neck(src: str, dst: str) -> tuple[Rule, ...]:
  """Rules of the two convolutions behind the layers."""
  return tuple(
    rule
    for n in (1, 2)
    for rule in (
      Rule(f"{src}.conv{n}.weight", f"{dst}/conv{n}/kernel", CONV),
      *rules.norm(f"{src}.layer_norm{n}", f"{dst}/norm{n}"),
    )
  )


# Canonical names as in its file.
RULES = (
  Rule("pos_embed", "posemb"),
  *rules.linear("patch_embed.projection", "patch", "o c p q -> p q c o"),
  *rules.under(_LAYER, "layers.{i}.", "blocks/*/"),
  *neck("neck", "neck"),
)


def encoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Encoder config of a `SamVisionConfig`, read after its first layer that sees everything too.

  Raises:
    ValueError: pictures that are not square.
  """
  f = fields.fields(
    cfg,
    hidden_size=768,
    output_channels=256,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=1024,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    qkv_bias=True,
    mlp_ratio=4.0,
    use_abs_pos=True,
    use_rel_pos=True,
    window_size=14,
    global_attn_indexes=(2, 5, 8, 11),
    mlp_dim=None,
  )
  (height, width), patch = fields.size(f.image_size), fields.patch(cfg, 16)
  if height != width:
    raise ValueError(f"config.json: SAM's image_size {height}x{width} is not square")
  return dict(
    kind="sam",
    width=f.hidden_size,
    depth=f.num_hidden_layers,
    hidden=int(f.hidden_size * f.mlp_ratio) if f.mlp_dim is None else f.mlp_dim,
    heads=f.num_attention_heads,
    patch=patch,
    table=(height // patch, width // patch),
    window=f.window_size,
    everywhere=tuple(f.global_attn_indexes),
    out_dim=f.output_channels,
    tap=f.global_attn_indexes[0] + 1,
    absolute=f.use_abs_pos,
    relative=f.use_rel_pos,
    act=fields.activation(f.hidden_act),
    eps=f.layer_norm_eps,
    bias=f.qkv_bias,
  )
