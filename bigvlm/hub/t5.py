"""T5 (arXiv 1910.10683), T5 1.1, FLAN-T5, UL2, mT5 (arXiv 2010.11934) and UMT5 (arXiv 2304.09151)
of transformers, and their encoders alone.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules, sources
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.ckpt.sources import Source
from bigvlm.hub import fields
from bigvlm.hub.system import System

_SHARED, _HEAD = "shared.weight", "lm_head.weight"
_EMBEDS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def _half(src: str, dst: str, cross: bool, gated: bool) -> tuple[Rule, ...]:
  """The encoder or the decoder: self-attention, in the decoder attention to the memory, MLP."""
  ffn = f"layer.{2 if cross else 1}"
  dense = f"{ffn}.DenseReluDense"
  layer = (
    *rules.norm("layer.0.layer_norm", "norm1"),
    *rules.attention("layer.0.SelfAttention", "attn", "o", "qkv"),
    *rules.norm(f"{ffn}.layer_norm", "norm2"),
    *rules.mlp(f"{dense}.", "mlp", "wi_1" if gated else "wi", "wo", "wi_0"),
  )
  if cross:
    layer += rules.norm("layer.1.layer_norm", "norm_cross")
    layer += rules.attention("layer.1.EncDecAttention", "cross", "o", "qkv")
  found = (
    *rules.under(layer, "block.{i}.", "blocks/*/"),
    # One bias for all layers, in the first of them; or one in every layer.
    Rule("block.0.layer.0.SelfAttention.relative_attention_bias.weight", "relpos/table"),
    Rule("block.{i}.layer.0.SelfAttention.relative_attention_bias.weight", "blocks/*/relpos/table"),
    *rules.norm("final_layer_norm", "norm"),
  )
  return rules.under(found, f"{src}.", f"{dst}/")


def ckpt_map(gated: bool, tied: bool) -> CkptMap:
  """The map of an encoder-decoder of transformers' T5 family.

  Args:
    gated: the MLP is. tied: the logits come from the embeddings.
  """
  found = (
    Rule(_SHARED, "embedding"),
    *_half("encoder", "encoder", False, gated),
    *_half("decoder", "decoder", True, gated),
    Rule(_HEAD, "head", "v d -> d v"),
  )
  return CkptMap(
    rules.under(found, "", "decoder/"),
    tied=tuple((alias, _SHARED) for alias in (*_EMBEDS, *((_HEAD,) if tied else ()))),
    # T5's first checkpoints have a bias of the cross-attention that nothing reads.
    carry=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
  )


def encoder_map(gated: bool) -> CkptMap:
  """The map of an encoder alone; see `ckpt_map`."""
  found = (Rule(_SHARED, "embedding"), *_half("encoder", "encoder", False, gated))
  return CkptMap(found, tied=((_EMBEDS[0], _SHARED),))


def decoder(cfg: Mapping[str, Any], *, scaled: bool = True, **defaults: Any) -> dict[str, Any]:
  """`model.decoder` of a `T5Config` or `MT5Config`.

  Args:
    cfg: it. scaled: hidden states may be scaled before the logits, as the config says.
    defaults: of fields, where they are not those of `T5Config`.

  Raises:
    ValueError: an MLP that is neither "ACT" nor "gated-ACT".
  """
  f = fields.fields(
    cfg,
    **dict(
      vocab_size=32_128,
      d_model=512,
      d_kv=64,
      d_ff=2048,
      num_layers=6,
      num_decoder_layers=None,
      num_heads=8,
      relative_attention_num_buckets=32,
      relative_attention_max_distance=128,
      layer_norm_epsilon=1e-6,
      feed_forward_proj="relu",
    )
    | defaults,
  )
  gate, _, act = f.feed_forward_proj.rpartition("-")
  if gate not in ("", "gated"):
    raise ValueError(
      f"feed_forward_proj in config.json is {f.feed_forward_proj!r}, not ACT or gated-ACT"
    )
  # Until version 5 a config said by "tied" also whether the hidden states are scaled.
  tied = cfg.get("tie_word_embeddings") is not False
  return dict(
    kind="encdec",
    vocab=f.vocab_size,
    width=f.d_model,
    depth=f.num_layers,
    decoder_depth=f.num_decoder_layers or f.num_layers,
    hidden=f.d_ff,
    heads=f.num_heads,
    head_dim=f.d_kv,
    # The one gelu that the reference takes for its approximation.
    act="gelu_tanh" if f.feed_forward_proj == "gated-gelu" else fields.activation(act),
    gated=gate == "gated",
    eps=f.layer_norm_epsilon,
    buckets=f.relative_attention_num_buckets,
    max_distance=f.relative_attention_max_distance,
    tied=tied,
    scale_logits=scaled and bool(cfg.get("scale_decoder_outputs", tied)),
  )


def untie(system: System, source: Source) -> System:
  """The system with a `head` of its own if the file has one that is not the embedding table.

  The reference ties by what is in the file: configs of T5 1.1 and mT5 say either.
  """
  there = source.specs()
  given = system.model["decoder"]
  # A file without the shared table has it under the name of one that is tied to it.
  table = next((name for name in (_SHARED, *_EMBEDS, _HEAD) if name in there), _SHARED)
  tied = _HEAD not in there or table == _HEAD
  if not tied and given["tied"]:
    tied = sources.same(source, _HEAD, table)
  found = ckpt_map(given["gated"], tied)
  if table != _SHARED:
    found = dataclasses.replace(found, rename=((f"^{re.escape(table)}$", _SHARED),))
  model = system.model | {"decoder": given | {"tied": tied}}
  return dataclasses.replace(system, model=model, map=found)


def renamed(system: System, source: Source) -> System:
  """The system of an encoder whose file may have the embeddings under their alias alone."""
  there = source.specs()
  if _SHARED in there or _EMBEDS[0] not in there:
    return system
  pair = (f"^{re.escape(_EMBEDS[0])}$", _SHARED)
  return dataclasses.replace(system, map=dataclasses.replace(system.map, rename=(pair,)))


def _mt5(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of an `MT5Config`; its hidden states are never scaled before the logits."""
  sizes = dict(vocab_size=250_112, d_ff=1024, num_layers=8, num_heads=6)
  return decoder(cfg, scaled=False, feed_forward_proj="gated-gelu", **sizes)


def _umt5(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `UMT5Config`.

  Whatever it says of ties, version 5 takes them as given, so that the hidden states are scaled.
  """
  sizes = dict(vocab_size=250_112, d_ff=1024, num_layers=8, num_heads=6)
  given = decoder(cfg, feed_forward_proj="gated-gelu", **sizes)
  return given | dict(own_bias=True, tied=True, scale_logits=True)


# `model_type` of a text config -> reader of it, for models around such a text model.
DECODERS = {"t5": decoder, "mt5": _mt5}


def special_ids(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Options of generation: ids that end a row, fill it and start it."""
  f = fields.fields(cfg, pad_token_id=0, eos_token_id=1)
  starts = (cfg.get("decoder_start_token_id"), cfg.get("bos_token_id"), f.pad_token_id)
  return dict(
    pad=f.pad_token_id,
    eos=fields.ids(f.eos_token_id),
    start=next((i for i in starts if i is not None), None),
  )


def _system(cfg: Mapping[str, Any], given: dict[str, Any]) -> System:
  return System(
    dict(kind="lm", decoder=given),
    ckpt_map(given["gated"], given["tied"]),
    "encdec",
    options=special_ids(cfg),
    refine=untie,
  )


def t5(cfg: Mapping[str, Any]) -> System:
  """`T5ForConditionalGeneration`: T5, T5 1.1, FLAN-T5, UL2."""
  return _system(cfg, decoder(cfg))


def mt5(cfg: Mapping[str, Any]) -> System:
  """`MT5ForConditionalGeneration`."""
  return _system(cfg, _mt5(cfg))


def umt5(cfg: Mapping[str, Any]) -> System:
  """`UMT5ForConditionalGeneration`."""
  return _system(cfg, _umt5(cfg))


# Fields of a decoder config that an encoder alone has too.
_ENCODER = (
  "vocab width depth hidden heads head_dim act gated eps buckets max_distance own_bias".split()
)


def _encoder(given: dict[str, Any]) -> System:
  text = dict(kind="encoder", **{name: given[name] for name in _ENCODER if name in given})
  model = dict(kind="text_encoder", text=text)
  return System(model, encoder_map(given["gated"]), "text_encoder", refine=renamed)


def t5_encoder(cfg: Mapping[str, Any]) -> System:
  """`T5EncoderModel`."""
  return _encoder(decoder(cfg))


def mt5_encoder(cfg: Mapping[str, Any]) -> System:
  """`MT5EncoderModel`."""
  return _encoder(_mt5(cfg))


def umt5_encoder(cfg: Mapping[str, Any]) -> System:
  """`UMT5EncoderModel`."""
  return _encoder(_umt5(cfg))
