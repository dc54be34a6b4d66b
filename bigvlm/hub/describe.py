"""From one of our models to a `config.json`, for a model that did not come with one.

Every description is read back and compared field by field with the model it is of: what
transformers' class cannot say is refused and never left out.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from bigvlm import build
from bigvlm.hub import fields, table
from bigvlm.hub.system import System

# Fields that change no number of a trained model at the size it is written for.
_FREE = frozenset(
  "parent name mode remat dtype param_dtype logits_dtype dropout resample length posemb_std "
  "stem_blocks mean std zero_init ordered keep_cls temperature_init bias_init source out_dim "
  "rope_scales rope_bases window_cuts_blocks".split()
)
_ACTIVATIONS = {
  "gelu_tanh": "gelu_pytorch_tanh",
  "gelu": "gelu",
  "quick_gelu": "quick_gelu",
  "silu": "silu",
  "relu": "relu",
  "relu2": "relu2",
}


def describe(
  model: Mapping[str, Any],
  image_size: tuple[int, int] | None,
  text_len: int,
  dtype: str,
  options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], System]:
  """A `config.json` for a model, and the system that it reads as.

  Args:
    model: `config.model`. image_size: (height, width). text_len: rows of a text tower's table.
    dtype: of the tensors. options: of the system the model had, for its token ids.

  Raises:
    ValueError: no class of transformers that we write is this model; names the first field that
      differs.
  """
  module = build.model(model)
  kinds: dict[str, Callable[..., dict[str, Any]]] = {
    "two_tower": _dual,
    "encoder": _encoder,
    "lm": _lm,
    "vlm": _paligemma,
  }
  if model["kind"] not in kinds:
    raise ValueError(f"a model of kind {model['kind']!r} has no form in transformers")
  cfg = kinds[model["kind"]](module, image_size, text_len, dict(options or {}))
  cfg |= {"dtype": dtype, "transformers_version": "5.23.0"}
  system = table.system(cfg, "the description of this model")
  found = difference(module, build.model(system.model))
  if found:
    raise ValueError(f"{cfg['architectures'][0]} of transformers is not this model: {found}")
  return cfg, system


def difference(ours: Any, theirs: Any, where: str = "model") -> str:
  """The first field in which two modules differ, in words; "" if in none."""
  if isinstance(ours, nn.Module) and isinstance(theirs, nn.Module):
    if type(ours) is not type(theirs):
      return f"{where} is {type(ours).__name__}, not {type(theirs).__name__}"
    for field in dataclasses.fields(ours):
      if field.name not in _FREE:
        pair = (_value(m, field.name) for m in (ours, theirs))
        found = difference(*pair, where=f"{where}.{field.name}")
        if found:
          return found
    return ""
  if isinstance(ours, Mapping):
    for key in ours.keys() | theirs.keys():
      found = difference(ours.get(key), theirs.get(key), f"{where}.{key}")
      if found:
        return found
    return ""
  if isinstance(ours, float) and isinstance(theirs, float):
    return "" if abs(ours - theirs) <= 1e-12 else f"{where} is {ours}, not {theirs}"
  return "" if ours == theirs else f"{where} is {ours!r}, not {theirs!r}"


def _value(module: nn.Module, name: str) -> Any:
  """A field of a module, a default that stands for another field's value spelt out."""
  value = getattr(module, name)
  if name in ("out_bias", "mlp_bias") and value is None:
    return module.bias
  if name == "query_scale" and not value:
    return module.head_dim**-0.5
  return value


def _tower(m: Any) -> dict[str, Any]:
  return dict(
    hidden_size=m.width,
    intermediate_size=m.hidden,
    num_hidden_layers=m.depth,
    num_attention_heads=m.heads,
    hidden_act=_ACTIVATIONS[m.act],
    layer_norm_eps=m.eps,
  )


def _image(m: Any, size: tuple[int, int] | None) -> dict[str, Any]:
  if size is None:
    raise ValueError("a model with images needs an image size to be written")
  shown = size[0] if size[0] == size[1] else list(size)
  return _tower(m) | dict(image_size=shown, patch_size=m.patch, num_channels=3)


def _dual(m: Any, size: Any, text_len: int, options: dict) -> dict[str, Any]:
  image, text = m.encoders["image"], m.text
  length = text.length or text_len
  if image.pool == "map":
    own = dict(vocab_size=text.vocab, max_position_embeddings=length, projection_size=text.out_dim)
    return dict(
      architectures=["SiglipModel"],
      model_type="siglip",
      text_config=_tower(text) | own | dict(model_type="siglip_text_model"),
      vision_config=_image(image, size) | dict(model_type="siglip_vision_model"),
    )
  own = dict(vocab_size=text.vocab, max_position_embeddings=length)
  own |= dict(eos_token_id=2 if text.pool == "highest" else text.eos)
  return dict(
    architectures=["CLIPModel"],
    model_type="clip",
    projection_dim=text.out_dim,
    text_config=_tower(text) | own | dict(model_type="clip_text_model"),
    vision_config=_image(image, size) | dict(model_type="clip_vision_model"),
  )


def _encoder(m: Any, size: Any, text_len: int, options: dict) -> dict[str, Any]:
  image = m.encoders["image"]
  if image.cls:
    return dict(
      architectures=["CLIPVisionModel"], model_type="clip_vision_model", **_image(image, size)
    )
  return dict(
    architectures=["SiglipVisionModel"],
    model_type="siglip_vision_model",
    vision_use_head=image.pool == "map",
    **_image(image, size),
  )


def _gemma(m: Any, options: dict) -> dict[str, Any]:
  cfg = dict(
    model_type="gemma2" if m.post_norms else "gemma",
    vocab_size=m.vocab,
    hidden_size=m.width,
    intermediate_size=m.hidden,
    num_hidden_layers=m.depth,
    num_attention_heads=m.heads,
    num_key_value_heads=m.kv_heads,
    head_dim=m.head_dim,
    rms_norm_eps=m.eps,
    attention_bias=m.bias,
    tie_word_embeddings=m.tied,
    rope_parameters=dict(rope_theta=m.rope_base, rope_type="default"),
    hidden_act=_ACTIVATIONS[m.act],
    eos_token_id=list(options.get("eos", (1,)))[0],
    pad_token_id=options.get("pad", 0),
    bos_token_id=2,
  )
  if not m.post_norms:
    return cfg
  scale = (m.query_scale or m.head_dim**-0.5) ** -2
  # transformers' Gemma 2 alternates windows; without one of its own a window that hides nothing.
  kinds = ["sliding_attention" if w else "full_attention" for w in m.windows]
  types = [kinds[i % len(kinds)] for i in range(m.depth)]
  return cfg | dict(
    hidden_activation=_ACTIVATIONS[m.act],
    query_pre_attn_scalar=round(scale) if abs(scale - round(scale)) < 1e-6 else scale,
    attn_logit_softcapping=m.attn_softcap or None,
    final_logit_softcapping=m.final_softcap or None,
    sliding_window=max(m.windows) or 4096,
    layer_types=types,
  )


def _lm(m: Any, size: Any, text_len: int, options: dict) -> dict[str, Any]:
  cfg = _gemma(_decoder(m), options)
  name = {"gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM"}[cfg["model_type"]]
  return dict(architectures=[name]) | cfg


def _decoder(m: Any) -> Any:
  """The decoder; refuses what is not decoder-only."""
  if not hasattr(m.decoder, "post_norms"):
    raise ValueError(f"a decoder of {type(m.decoder).__name__} is not written yet")
  return m.decoder


def _paligemma(m: Any, size: Any, text_len: int, options: dict) -> dict[str, Any]:
  decoder, image = _decoder(m), m.encoders["image"]
  height, width = fields.size(size)
  tokens = (height // image.patch) * (width // image.patch)
  vision = _image(image, size) | dict(
    model_type="siglip_vision_model",
    vision_use_head=False,
    projection_dim=decoder.width,
    num_image_tokens=tokens,
  )
  text = _gemma(decoder, options) | dict(num_image_tokens=tokens)
  return dict(
    architectures=["PaliGemmaForConditionalGeneration"],
    model_type="paligemma",
    image_token_index=options.get("image_token", 257_152),
    projection_dim=decoder.width,
    hidden_size=decoder.width,
    tie_word_embeddings=decoder.tied,
    bos_token_id=2,
    eos_token_id=text["eos_token_id"],
    pad_token_id=text["pad_token_id"],
    text_config=text,
    vision_config=vision,
  )
