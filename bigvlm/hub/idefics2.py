"""Idefics 2 (arXiv 2405.02246) of transformers."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import Rule
from bigvlm.hub import fields, idefics3, texts, tying
from bigvlm.hub.system import System

_LAYER = (
  *rules.norm("input_latents_norm", "norm1"),
  *rules.norm("input_context_norm", "norm_context"),
  *rules.attention("self_attn", "attn"),
  *rules.norm("post_attention_layernorm", "norm2"),
  *rules.gated("mlp", "mlp"),
)
_PERCEIVER = (
  Rule("latents", "latents"),
  *rules.under(_LAYER, "layers.{i}.", "blocks/*/"),
  *rules.norm("norm", "norm"),
)
_CONNECTOR = (
  *rules.gated("model.connector.modality_projection", "connector/proj"),
  *rules.under(_PERCEIVER, "model.connector.perceiver_resampler.", "connector/"),
)


def idefics2(cfg: Mapping[str, Any]) -> System:
  """`Idefics2ForConditionalGeneration`."""
  text = cfg.get("text_config")
  if text is None:
    text = dict(max_position_embeddings=4096 * 8, rms_norm_eps=1e-5, pad_token_id=0)
  top = fields.fields(cfg, image_token_id=32_001, tie_word_embeddings=False)
  encoder, image_size = idefics3.tower(fields.sub(cfg, "vision_config"))
  decoder = texts.body(text, "mistral") | dict(tied=top.tie_word_embeddings)
  connector = _resampler(fields.sub(cfg, "perceiver_config"), decoder)
  model = dict(kind="vlm", encoders=dict(image=encoder), connector=connector, decoder=decoder)
  options = dict(image_token=top.image_token_id, media="padded", whole_patches=True)
  options |= texts.special_ids(cfg, text, "mistral")
  ckpt = idefics3.checkpoint(text, _CONNECTOR, "mistral")
  return System(model, ckpt, "vlm", image_size, options=options, refine=tying.refine)


def _resampler(cfg: Mapping[str, Any], decoder: Mapping[str, Any]) -> dict[str, Any]:
  """Connector config of an `Idefics2PerceiverConfig`."""
  f = fields.fields(
    cfg,
    hidden_act="silu",
    hidden_size=4096,
    rms_norm_eps=1e-6,
    resampler_n_latents=64,
    resampler_depth=3,
    resampler_n_heads=16,
    resampler_head_dim=96,
    num_key_value_heads=4,
  )
  width = decoder["width"]
  return dict(
    kind="resampler",
    latents=f.resampler_n_latents,
    depth=f.resampler_depth,
    heads=f.resampler_n_heads,
    kv_heads=f.num_key_value_heads,
    head_dim=f.resampler_head_dim,
    hidden=4 * width,
    norm="rms_plain",
    # A config that leaves the width to the text's leaves this to it as well.
    eps=f.rms_norm_eps if f.hidden_size == width else decoder["eps"],
    act=fields.activation(f.hidden_act),
    gated=True,
    latents_std=0.0,
    proj=decoder["hidden"],
    proj_act=decoder["act"],
  )
