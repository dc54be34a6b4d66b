"""BLIP-2 (arXiv 2301.12597) of transformers: with a text model, and for matching texts to images.

The parts it shares with InstructBLIP are public.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.ckpt.sources import Source
from bigvlm.hub import fields, t5, texts, tying, vit
from bigvlm.hub.system import System
from bigvlm.hub.text import BUFFERS

_VISION_LAYER = (
  *rules.norm("layer_norm1", "norm1"),
  *rules.joint("self_attn.qkv.", "attn", "self_attn.projection"),
  *rules.norm("layer_norm2", "norm2"),
  *rules.mlp("mlp.", "mlp"),
)
_VISION = (
  Rule("embeddings.class_embedding", "cls"),
  *rules.linear("embeddings.patch_embedding", "patch", "o c p q -> p q c o"),
  Rule("embeddings.position_embedding", ("cls_posemb", "posemb"), cut=1),
  *rules.under(_VISION_LAYER, "encoder.layers.{i}.", "blocks/*/"),
  *rules.norm("post_layernorm", "norm"),
)


def _attention(src: str, dst: str, norm: str) -> tuple[Rule, ...]:
  return (
    *rules.attention(src, dst, "output.dense", vit.QKV),
    *rules.norm(f"{src}.output.LayerNorm", norm),
  )


def _mlp(up: str, down: str, dst: str, norm: str) -> tuple[Rule, ...]:
  return (
    *rules.mlp("", dst, f"{up}.dense", f"{down}.dense"),
    *rules.norm(f"{down}.LayerNorm", norm),
  )


_QFORMER_LAYER = (
  *_attention("attention", "attn", "norm1"),
  *_attention("crossattention", "cross", "norm_cross"),
  *_mlp("intermediate_query", "output_query", "mlp", "norm2"),
  *_mlp("intermediate", "output", "text_mlp", "text_norm2"),
)
# `model_type` of a text config that is not there, and first ids of the classes.
_DEFAULT, _BOS = "opt", {"opt": 2, "llama": 1, "mistral": 1}
# Buffers in files of old versions.
_BUFFERS = (r"(qformer\.)?embeddings\.position_ids",)


def shared_rules(embeddings: str, norm: str) -> tuple[Rule, ...]:
  """The image encoder and the Q-Former with its text.

  Args:
    embeddings: prefix of the embeddings of that text.
    norm: name of the norm of what goes into the Q-Former.
  """
  return (
    *rules.under(_VISION, "vision_model.", "encoders/image/"),
    Rule("query_tokens", "connector/query"),
    Rule(f"{embeddings}.word_embeddings.weight", "connector/embed/embedding"),
    Rule(f"{embeddings}.position_embeddings.weight", "connector/posemb", "n d -> 1 n d"),
    *rules.norm(norm, "connector/norm"),
    *rules.under(_QFORMER_LAYER, "qformer.encoder.layer.{i}.", "connector/blocks/*/"),
    *rules.linear("language_projection", "connector/linear"),
  )


_SHARED = shared_rules("embeddings", "qformer.layernorm")
_RETRIEVAL = CkptMap(
  (
    *_SHARED,
    *rules.linear("vision_projection", "image"),
    *rules.linear("text_projection", "text"),
    *rules.linear("itm_head", "match"),
  ),
  carry=_BUFFERS,
)


def vision(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
  """Encoder config and image size of a `Blip2VisionConfig` or `InstructBlipVisionConfig`."""
  f = fields.fields(
    cfg,
    hidden_size=1408,
    intermediate_size=6144,
    num_hidden_layers=39,
    num_attention_heads=16,
    image_size=224,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    qkv_bias=True,
  )
  encoder = dict(
    kind="vit",
    width=f.hidden_size,
    depth=f.num_hidden_layers,
    hidden=f.intermediate_size,
    heads=f.num_attention_heads,
    act=fields.activation(f.hidden_act),
    eps=f.layer_norm_eps,
    bias=f.qkv_bias,
    out_bias=True,
    mlp_bias=True,
    patch=fields.patch(cfg, 14),
    resample="bicubic",
    cls=True,
    cls_posemb=True,
    keep_cls=True,
  )
  return encoder, fields.size(f.image_size)


def qformer(cfg: Mapping[str, Any], queries: int, *, text: bool) -> dict[str, Any]:
  """Connector config of a `Blip2QFormerConfig` or `InstructBlipQFormerConfig`.

  Args:
    cfg: it. queries: their number. text: it reads a text.
  """
  f = fields.fields(
    cfg,
    vocab_size=30_522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    max_position_embeddings=512,
    cross_attention_frequency=2,
  )
  return dict(
    kind="qformer",
    queries=queries,
    width=f.hidden_size,
    depth=f.num_hidden_layers,
    heads=f.num_attention_heads,
    hidden=f.intermediate_size,
    act=fields.activation(f.hidden_act),
    eps=f.layer_norm_eps,
    every=f.cross_attention_frequency,
    vocab=f.vocab_size if text else 0,
    length=f.max_position_embeddings,
  )


def generator(
  cfg: Mapping[str, Any],
  shared: Sequence[Rule],
  *,
  text: bool,
  token: str = "image_token",
  frames: int = 1,
  **options: Any,
) -> System:
  """An image encoder, a Q-Former and a text model, a decoder or an encoder-decoder.

  Args:
    cfg: `config.json`. shared: rules of the first two.
    text: the Q-Former reads a text.
    token: option that names the placeholders; its id is the field with `_index` behind.
    frames: pictures of a prompt that nobody gave.
    options: more options of the system.

  Raises:
    ValueError: no id of the placeholders, or a text model that it is not made of.
  """
  index = cfg.get(f"{token}_index", cfg.get(f"{token}_id"))
  if index is None:
    raise ValueError(
      f"config.json: {token}_index is not set; it is the id of the places of the queries in "
      "input_ids, which the reference needs too"
    )
  encoder, image_size = vision(fields.sub(cfg, "vision_config"))
  queries = cfg.get("num_query_tokens", 32)
  inner = fields.sub(cfg, "text_config")
  decoder, found, tied, carry, ends = _text(inner)
  model = dict(
    kind="vlm",
    encoders=dict(image=encoder),
    connector=qformer(fields.sub(cfg, "qformer_config"), queries, text=text),
    decoder=decoder,
  )
  # The queries alone have no use for the layers of a text.
  unread = () if text else (r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\..*",)
  ckpt_map = CkptMap((*shared, *found), tied=tied, carry=(*_BUFFERS, *unread, *carry))
  # The text model generates by its own config alone: `generation_config.json` is not for it.
  options |= {token: index, "generation_config": False, "guess_padding": False} | ends
  bos = inner.get("bos_token_id", _BOS.get(inner.get("model_type") or _DEFAULT))
  if bos is not None:
    options["prompt"] = (*(index,) * (queries * frames), bos)
  return System(model, ckpt_map, "vlm", image_size, options=options, refine=_untie)


def _text(cfg: Mapping[str, Any]) -> tuple[dict, tuple, tuple, tuple, dict]:
  """Decoder config, rules, tied tensors, carried tensors and end ids of a `text_config`.

  Raises:
    ValueError: embeddings that are narrower or wider than the layers, which the queries go into.
  """
  kind = cfg.get("model_type") or _DEFAULT
  if kind in t5.DECODERS:
    decoder = t5.DECODERS[kind](cfg) | dict(tied=True)  # Until the file says otherwise.
    found = t5.ckpt_map(decoder["gated"], True)
    default, aliases, carry, ends = found.rules, found.tied, found.carry, t5.special_ids(cfg)
  else:
    decoder, default = texts.decoder(cfg, _DEFAULT), texts.under(cfg, "", _DEFAULT)
    if decoder.get("embed_dim"):
      raise ValueError(
        f"config.json: text_config.word_embed_proj_dim {decoder['embed_dim']} is not hidden_size "
        f"{decoder['width']}; only such is read here, where queries stand beside the embeddings"
      )
    aliases, carry = texts.named(cfg, _DEFAULT).tied, BUFFERS
    ends = texts.special_ids({}, cfg, _DEFAULT)
  prefix = "language_model."
  tied = tuple((prefix + alias, prefix + of) for alias, of in aliases)
  carry = tuple(re.escape(prefix) + pattern for pattern in carry)
  return decoder, rules.under(default, prefix, ""), tied, carry, ends


def _untie(system: System, source: Source) -> System:
  """See `tying.refine`; a file may also hold the embeddings under an alias alone."""
  there = {system.map.canonical(key) for key in source.specs()}
  for alias, of in system.map.tied:
    if of not in there and alias in there:
      rename = (*system.map.rename, (f"^{re.escape(alias)}$", of))
      system = dataclasses.replace(system, map=dataclasses.replace(system.map, rename=rename))
      break
  return tying.refine(system, source)


def blip2(cfg: Mapping[str, Any]) -> System:
  """`Blip2ForConditionalGeneration`."""
  return generator(cfg, _SHARED, text=False)


def retrieval(cfg: Mapping[str, Any]) -> System:
  """`Blip2ForImageTextRetrieval`.

  Raises:
    ValueError: a Q-Former without layers for the text.
  """
  inner = fields.sub(cfg, "qformer_config")
  if not inner.get("use_qformer_text_input", False):
    raise ValueError(
      "config.json: qformer_config.use_qformer_text_input is false; matching needs a Q-Former that "
      "reads texts"
    )
  f = fields.fields(cfg, num_query_tokens=32, image_text_hidden_size=256, image_token_index=None)
  encoder, image_size = vision(fields.sub(cfg, "vision_config"))
  former = qformer(inner, f.num_query_tokens, text=True)
  model = dict(
    kind="matching",
    encoders=dict(image=encoder),
    connector=former,
    out_dim=f.image_text_hidden_size,
  )
  token = cfg.get("image_token_id") if f.image_token_index is None else f.image_token_index
  options = dict(places=0 if token is None else f.num_query_tokens)
  return System(model, _RETRIEVAL, "matching", image_size, former["length"], options)
