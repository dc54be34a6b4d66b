"""Gemma 1, 2 and 3 as text models (arXiv 2403.08295, 2408.00118, 2503.19786)."""

from collections.abc import Mapping, Sequence
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields
from bigvlm.hub.system import System
from bigvlm.utils import names

_LAYER = (
  *rules.norm("input_layernorm", "norm1"),
  *rules.attention(
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "attn"
  ),
  *rules.norm("self_attn.q_norm", "attn/q_norm"),
  *rules.norm("self_attn.k_norm", "attn/k_norm"),
  *rules.linear("mlp.gate_proj", "mlp/gate"),
  *rules.linear("mlp.up_proj", "mlp/up"),
  *rules.linear("mlp.down_proj", "mlp/down"),
)
# The same stored name is another norm in Gemma 1 than in its successors.
_NORMS = rules.norm("post_attention_layernorm", "norm2")
_POST_NORMS = (
  *rules.norm("post_attention_layernorm", "post_norm1"),
  *rules.norm("pre_feedforward_layernorm", "norm2"),
  *rules.norm("post_feedforward_layernorm", "post_norm2"),
)


def _rules(layer: Sequence[Rule]) -> tuple[Rule, ...]:
  return (
    Rule("model.embed_tokens.weight", "decoder/embedding"),
    *rules.under(layer, "model.layers.{i}.", "decoder/blocks/*/"),
    *rules.norm("model.norm", "decoder/norm"),
    Rule("lm_head.weight", "decoder/head", "v d -> d v"),
  )


_GEMMA, _GEMMA_POST = _rules((*_LAYER, *_NORMS)), _rules((*_LAYER, *_POST_NORMS))
# `model_type` -> rules of the decoder, canonical names as in a text model's file.
RULES = {"gemma": _GEMMA, "gemma2": _GEMMA_POST, "gemma3_text": _GEMMA_POST}
# Buffers in files of old versions.
BUFFERS = (r".*\.rotary_emb\.inv_freq",)
_TIED = (("lm_head.weight", "model.embed_tokens.weight"),)
_MAPS = {kind: CkptMap(r, tied=_TIED, carry=BUFFERS) for kind, r in RULES.items()}


def rotary(given: Mapping[str, Any], base: float) -> tuple[float, float]:
  """Base and scale of a set of rotary parameters.

  Args:
    given: `rope_parameters` or `rope_scaling`. base: when it names none.

  Raises:
    ValueError: a kind of scaling other than "linear".
  """
  kind = given.get("rope_type") or given.get("type") or "default"
  if kind not in ("default", "linear"):
    raise ValueError(names.unknown("rope_type in config.json", kind, ("default", "linear")))
  scale = float(given["factor"]) if kind == "linear" else 1.0
  return float(given.get("rope_theta") or base), scale


def _one_rotary(cfg: Mapping[str, Any]) -> tuple[float, float]:
  """Base and scale of a config with one set for all layers, in either style."""
  given = cfg.get("rope_scaling") or cfg.get("rope_parameters") or {}
  return rotary(given, cfg.get("rope_theta") or 10_000.0)


def _windows(f: Any, types: Sequence[str]) -> tuple[int, ...]:
  return tuple((f.sliding_window or 0) * (t == "sliding_attention") for t in types)


def _layer_types(cfg: Mapping[str, Any], depth: int, pattern: int) -> tuple[str, ...]:
  """ "sliding_attention" or "full_attention" for every layer of a period."""
  kinds = ("sliding_attention", "full_attention")
  given = cfg.get("layer_types")
  types = given or [kinds[(i + 1) % pattern == 0] for i in range(depth)]
  if len(types) != depth:
    raise ValueError(f"layer_types in config.json has {len(types)} entries for {depth} layers")
  for found in types:
    if found not in kinds:
      raise ValueError(names.unknown("layer type in config.json", found, kinds))
  period = next(
    p for p in range(1, depth + 1) if all(types[i] == types[i % p] for i in range(depth))
  )
  return tuple(types[:period])


def _decoder(f: Any, act: str) -> dict[str, Any]:
  return dict(
    kind="decoder",
    vocab=f.vocab_size,
    width=f.hidden_size,
    depth=f.num_hidden_layers,
    hidden=f.intermediate_size,
    heads=f.num_attention_heads,
    kv_heads=f.num_key_value_heads,
    head_dim=f.head_dim,
    tied=f.tie_word_embeddings,
    act=fields.activation(act),
    eps=f.rms_norm_eps,
    bias=f.attention_bias,
    mlp_bias=False,
  )


_COMMON = dict(head_dim=256, rms_norm_eps=1e-6, attention_bias=False, tie_word_embeddings=True)


def gemma_decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `GemmaConfig`."""
  f = fields.fields(
    cfg,
    vocab_size=256_000,
    hidden_size=3072,
    intermediate_size=24_576,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=16,
    hidden_act="gelu_pytorch_tanh",
    **_COMMON,
  )
  # The first release said "gelu" and meant its approximation.
  act = "gelu_pytorch_tanh" if f.hidden_act == "gelu" else f.hidden_act
  base, scale = _one_rotary(cfg)
  return _decoder(f, act) | dict(rope_base=base, rope_scales=(scale,))


def _gemma2_fields(cfg: Mapping[str, Any], **more: Any) -> Any:
  return fields.fields(
    cfg,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=256,
    sliding_window=4096,
    **_COMMON,
    **more,
  )


def gemma2_decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `Gemma2Config`."""
  f = _gemma2_fields(
    cfg, vocab_size=256_000, final_logit_softcapping=30.0, attn_logit_softcapping=50.0
  )
  types = _layer_types(cfg, f.num_hidden_layers, 2)
  base, scale = _one_rotary(cfg)
  return _decoder(f, f.hidden_activation) | dict(
    query_scale=f.query_pre_attn_scalar**-0.5,
    windows=_windows(f, types),
    rope_base=base,
    rope_scales=(scale,) * len(types),
    post_norms=True,
    attn_softcap=f.attn_logit_softcapping or 0.0,
    final_softcap=f.final_logit_softcapping or 0.0,
  )


def gemma3_decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `Gemma3TextConfig`; like the reference it has no attention soft-cap.

  Raises:
    ValueError: the config asks for text that sees what comes after it.
  """
  f = _gemma2_fields(
    cfg,
    vocab_size=262_208,
    final_logit_softcapping=None,
    use_bidirectional_attention=False,
    sliding_window_pattern=6,
  )
  if f.use_bidirectional_attention:
    raise ValueError("config.json: use_bidirectional_attention is not supported for Gemma 3")
  types = _layer_types(cfg, f.num_hidden_layers, f.sliding_window_pattern)
  nested = cfg.get("rope_parameters") or {}
  # Version 4 scaled the layers that see everything and no others.
  whole = {**(nested.get("full_attention") or {}), **(cfg.get("rope_scaling") or {})}
  local = nested.get("sliding_attention") or {}
  ropes = {
    "full_attention": rotary(whole, cfg.get("rope_theta") or 1_000_000.0),
    "sliding_attention": rotary(local, cfg.get("rope_local_base_freq") or 10_000.0),
  }
  return _decoder(f, f.hidden_activation) | dict(
    query_scale=f.query_pre_attn_scalar**-0.5,
    windows=_windows(f, types),
    rope_bases=tuple(ropes[t][0] for t in types),
    rope_scales=tuple(ropes[t][1] for t in types),
    qk_norm=True,
    post_norms=True,
    final_softcap=f.final_logit_softcapping or 0.0,
  )


# `model_type` of a text config -> reader of it.
DECODERS = {"gemma": gemma_decoder, "gemma2": gemma2_decoder, "gemma3_text": gemma3_decoder}


def special_ids(cfg: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
  """Options of generation: `eos` and `pad` of a config, else of its text config."""
  found = {}
  for key, default in (("eos_token_id", 1), ("pad_token_id", 0)):
    value = cfg.get(key)
    found[key] = text.get(key, default) if value is None else value
  return dict(eos=fields.ids(found["eos_token_id"]), pad=found["pad_token_id"])


def _system(kind: str, cfg: Mapping[str, Any]) -> System:
  model = dict(kind="lm", decoder=DECODERS[kind](cfg))
  return System(model, _MAPS[kind], "lm", options=special_ids(cfg, cfg))


def gemma(cfg: Mapping[str, Any]) -> System:
  """`GemmaForCausalLM`."""
  return _system("gemma", cfg)


def gemma2(cfg: Mapping[str, Any]) -> System:
  """`Gemma2ForCausalLM`."""
  return _system("gemma2", cfg)


def gemma3_text(cfg: Mapping[str, Any]) -> System:
  """`Gemma3ForCausalLM`."""
  return _system("gemma3_text", cfg)
