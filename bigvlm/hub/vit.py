"""ViT (arXiv 2010.11929) of transformers: encoder and image classifier."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.ckpt.sources import Source
from bigvlm.hub import clip, fields
from bigvlm.hub.system import System

EMBEDDINGS = (
  Rule("embeddings.cls_token", "cls"),
  Rule("embeddings.position_embeddings", ("cls_posemb", "posemb"), "", 1),
  *rules.linear("embeddings.patch_embeddings.projection", "patch", "o c p q -> p q c o"),
)
QKV = ("attention.query", "attention.key", "attention.value")
ATTENTION = rules.attention("attention", "attn", "output.dense", QKV)
_LAYER = (
  *rules.norm("layernorm_before", "norm1"),
  *ATTENTION,
  *rules.norm("layernorm_after", "norm2"),
  *rules.mlp("", "mlp", "intermediate.dense", "output.dense"),
)
_VIT = (
  *EMBEDDINGS,
  *rules.under(_LAYER, "encoder.layer.{i}.", "blocks/*/"),
  *rules.norm("layernorm", "norm"),
  *rules.linear("pooler.dense", "pre_logits"),
)
# The names of the modules of transformers 5 to those of the files.
ATTENTION_NAMES = (
  (r"\.attention\.q_proj\.", ".attention.attention.query."),
  (r"\.attention\.k_proj\.", ".attention.attention.key."),
  (r"\.attention\.v_proj\.", ".attention.attention.value."),
  (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
_NAMES = (
  (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
  *ATTENTION_NAMES,
  (r"\.mlp\.fc1\.", ".intermediate.dense."),
  (r"\.mlp\.fc2\.", ".output.dense."),
)
# Of pretraining with masked patches.
CARRY = (r"(.*\.)?embeddings\.mask_token",)

_ENCODER = CkptMap(
  rules.under(_VIT, "", "encoders/image/"), rename=((r"^vit\.", ""), *_NAMES), carry=CARRY
)
_CLASSIFIER = CkptMap(
  (
    *rules.under(_VIT, "vit.", "encoders/image/"),
    *rules.linear("classifier", "encoders/image/head"),
  ),
  rename=_NAMES,
  carry=CARRY,
)


def tower(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
  """Encoder config and image size of a `ViTConfig`, without what follows the class token."""
  f = fields.fields(
    cfg,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    image_size=224,
    qkv_bias=True,
    head_dim=0,
  )
  encoder = dict(
    kind="vit",
    **clip.stack(f),
    patch=fields.patch(cfg, 16),
    head_dim=f.head_dim,
    bias=f.qkv_bias,
    out_bias=True,
    mlp_bias=True,
    resample="bicubic",
    cls=True,
    cls_posemb=True,
    keep_cls=True,
    pool="tok",
  )
  return encoder, fields.size(f.image_size)


def encoder(cfg: Mapping[str, Any]) -> System:
  """`ViTModel`, with its pooler or, as in the files of DINO (arXiv 2104.14294), without.

  Raises:
    ValueError: a pooler with another activation than tanh.
  """
  built, image_size = tower(cfg)
  f = fields.fields(cfg, pooler_output_size=None, pooler_act="tanh")
  if f.pooler_act != "tanh":
    raise ValueError(f"config.json: pooler_act is {f.pooler_act!r}; only 'tanh' is read")
  built |= dict(rep_size=f.pooler_output_size or built["width"])
  return System(
    dict(kind="encoder", encoders=dict(image=built)),
    _ENCODER,
    "encoder",
    image_size,
    refine=_without_pooler,
  )


def _without_pooler(system: System, source: Source) -> System:
  """The system of a file that holds no pooler, which no config says."""
  if any(key.endswith("pooler.dense.weight") for key in source.specs()):
    return system
  built = system.model["encoders"]["image"] | dict(pool="none", rep_size=0)
  return dataclasses.replace(system, model=dict(kind="encoder", encoders=dict(image=built)))


def classifier(cfg: Mapping[str, Any]) -> System:
  """`ViTForImageClassification`."""
  built, image_size = tower(cfg)
  built |= dict(out_dim=fields.labels(cfg))
  return System(
    dict(kind="encoder", encoders=dict(image=built)),
    _CLASSIFIER,
    "encoder",
    image_size,
    options=dict(classifier=True),
  )
