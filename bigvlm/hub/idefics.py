"""IDEFICS (arXiv 2306.16527), an open Flamingo (arXiv 2204.14198), of transformers."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import clip, fields, text
from bigvlm.hub.rotary import rotary
from bigvlm.hub.system import System
from bigvlm.utils import names

_MLP = (
  *rules.norm("post_attention_layernorm", "norm2"),
  *rules.gated("mlp", "mlp"),
)
_LAYER = (
  *rules.norm("input_layernorm", "norm1"),
  *rules.attention("self_attn", "attn"),
  *_MLP,
)
_CROSS = (
  *rules.norm("input_layernorm", "norm_cross"),
  *rules.attention("cross_attn", "cross"),
  *rules.norm("cross_attn.q_layer_norm", "cross/q_norm"),
  *rules.norm("cross_attn.k_layer_norm", "cross/k_norm"),
  *_MLP,
)
_RESAMPLER = (
  *rules.norm("0.context_layer_norm", "norm_context"),
  *rules.norm("0.latents_layer_norm", "norm1"),
  *rules.norm("0.q_layer_norm", "attn/q_norm"),
  *rules.norm("0.k_layer_norm", "attn/k_norm"),
  *rules.attention("0", "attn", "output_proj"),
  *rules.norm("1.ln", "norm2"),
  *rules.mlp("1.", "mlp", "fc", "c_proj"),
)
_RULES = (
  *rules.under(clip.CLIP_VISION, "model.vision_model.", "encoders/image/"),
  Rule("model.perceiver_resampler.latents", "connector/latents"),
  *rules.under(_RESAMPLER, "model.perceiver_resampler.blocks.{i}.", "connector/blocks/*/"),
  *rules.norm("model.perceiver_resampler.layer_norm", "connector/norm"),
  Rule("model.embed_tokens.weight", "decoder/embedding"),
  Rule("model.embed_tokens.additional_embedding.weight", "decoder/embedding_extra"),
  *rules.under(_LAYER, "model.layers.{i}.", "decoder/blocks/*[attn]/"),
  *rules.under(_CROSS, "model.gated_cross_attn_layers.{i}.", "decoder/blocks/*[cross]/"),
  *rules.norm("model.norm", "decoder/norm"),
  Rule("lm_head.weight", "decoder/head", "v d -> d v"),
  Rule("lm_head.additional_fc.weight", "decoder/head_extra", "v d -> d v"),
)
_TIED = (
  ("lm_head.weight", "model.embed_tokens.weight"),
  ("lm_head.additional_fc.weight", "model.embed_tokens.additional_embedding.weight"),
)
# Files of the model without a head begin one level below.
_RENAME = ((r"^(?!model\.|lm_head\.)", "model."),)
# The norm of a pooled token that nobody reads, and buffers of old versions.
_CARRY = (
  r"model\.vision_model\.post_layernorm\..*",
  *text.BUFFERS,
  *clip.BUFFERS,
)


def _map(gate: str) -> CkptMap:
  """The map with gates of these axes."""
  kinds = (("alpha_cross_attn", "gate_cross"), ("alpha_dense", "gate2"))
  gates = tuple(Rule(src, dst, gate) for src, dst in kinds)
  gates = rules.under(gates, "model.gated_cross_attn_layers.{i}.", "decoder/blocks/*[cross]/")
  return CkptMap((*_RULES, *gates), _RENAME, _TIED, _CARRY)


_MAPS = {"float": _map(""), "vector": _map("1 1 d -> d")}


def _vision(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
  """Encoder config and image size of an `IdeficsVisionConfig`: CLIP's, the class token kept."""
  width = cfg.get("embed_dim", cfg.get("hidden_size", 768))
  sizes = dict(
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=16,
    patch_size=14,
    hidden_act="gelu",
  )
  encoder, size = clip.clip_vision(sizes | cfg | dict(hidden_size=width))
  return encoder | dict(final_norm="none", pool="none", resample="bicubic_tenth"), size


def _connector(f: Any, width: int) -> dict[str, Any]:
  """The resampler, or the encoder's tokens as they are."""
  if not f.use_resampler:
    return dict(kind="plain", extra=1)
  p = fields.fields(
    f.perceiver_config or {},
    resampler_n_latents=64,
    resampler_depth=6,
    resampler_n_heads=16,
    resampler_head_dim=96,
    qk_layer_norms_perceiver=False,
  )
  return dict(
    kind="resampler",
    latents=p.resampler_n_latents,
    depth=p.resampler_depth,
    heads=p.resampler_n_heads,
    kv_heads=p.resampler_n_heads,
    head_dim=p.resampler_head_dim,
    hidden=4 * width,
    qk_norm=p.qk_layer_norms_perceiver,
  )


def _decoder(
  cfg: Mapping[str, Any], decoder: dict[str, Any], f: Any, memory: int
) -> dict[str, Any]:
  """A Llama with a cross-attention layer before every so many of its own."""
  every, depth = f.cross_layer_interval, f.num_hidden_layers
  if depth % every:
    raise ValueError(
      f"config.json: {depth} layers (num_hidden_layers) are not a multiple of {every} "
      "(cross_layer_interval)"
    )
  names.lookup("alpha_type in config.json", f.alpha_type, _MAPS)
  return decoder | dict(
    vocab=f.vocab_size + f.additional_vocab_size,
    extra_vocab=f.additional_vocab_size,
    depth=depth + depth // every,
    norm="rms_plain",
    eps=f.rms_norm_eps,
    cross_layers=tuple(range(0, depth + depth // every, every + 1)),
    cross=dict(
      width=memory,
      qk_norm=f.qk_layer_norms,
      blind="zero",
      gate=f.hidden_size if f.alpha_type == "vector" else 1,
    ),
    **rotary(cfg, decoder["head_dim"]),
  )


def idefics(cfg: Mapping[str, Any]) -> System:
  """`IdeficsForVisionText2Text`.

  Raises:
    ValueError: layers that cannot be shared out, or a kind of gates that is not known.
  """
  decoder, f = text.plain(
    cfg,
    vocab_size=32_000,
    additional_vocab_size=0,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    cross_layer_interval=1,
    qk_layer_norms=False,
    alpha_type="float",
    use_resampler=False,
    perceiver_config=None,
  )
  encoder, image_size = _vision(fields.sub(cfg, "vision_config"))
  model = dict(
    kind="vlm",
    encoders=dict(image=encoder),
    connector=_connector(f, encoder["width"]),
    fusion=dict(kind="memory"),
    decoder=_decoder(cfg, decoder, f, encoder["width"]),
  )
  options = dict(media="pictures", numbered=True, pad_position=1) | fields.ends(cfg, 2, 0)
  return System(model, _MAPS[f.alpha_type], "memory", image_size, options=options)
