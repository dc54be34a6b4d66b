"""Gemma 1, 2 and 3 as text models (arXiv 2403.08295, 2408.00118, 2503.19786)."""

from collections.abc import Mapping, Sequence
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields, tying
from bigvlm.hub import rotary as rotary_lib
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


def _rotaries(cfg: Mapping[str, Any], head_dim: int, types: Sequence[str]) -> dict[str, Any]:
  """Fields of a decoder whose kinds of layers have rotary embeddings of their own."""
  nested = cfg.get("rope_parameters") or {}
  # Version 4 scaled the layers that see everything and no others.
  whole = {**(nested.get("full_attention") or {}), **(cfg.get("rope_scaling") or {})}
  local = nested.get("sliding_attention") or {}
  longest = fields.fields(cfg, max_position_embeddings=131_072).max_position_embeddings
  made = {}
  for name, given, base in (
    ("full_attention", whole, cfg.get("rope_theta") or 1_000_000.0),
    ("sliding_attention", local, cfg.get("rope_local_base_freq") or 10_000.0),
  ):
    # The reference looks for `truncate` where no kind of layers has it.
    own = {k: v for k, v in given.items() if k != "truncate"}
    made[name] = rotary_lib.rotary({"rope_parameters": own}, head_dim, theta=base, length=longest)
  found = [made[t] for t in types]
  out = dict(rope_bases=tuple(f["rope_base"] for f in found))
  out |= dict(rope_scales=tuple(f["rope_scales"][0] for f in found))
  stretched = {str(n): f["rotary"] for n, f in enumerate(found) if f["rotary"]}
  return out | (dict(rotaries=stretched) if stretched else {})


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
  return _decoder(f, act) | rotary_lib.rotary(cfg, f.head_dim, length=8192)


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
  return _decoder(f, f.hidden_activation) | dict(
    query_scale=f.query_pre_attn_scalar**-0.5,
    windows=_windows(f, types),
    post_norms=True,
    attn_softcap=f.attn_logit_softcapping or 0.0,
    final_softcap=f.final_logit_softcapping or 0.0,
    **rotary_lib.rotary(cfg, f.head_dim, length=8192, layers=len(types)),
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
  return _decoder(f, f.hidden_activation) | dict(
    query_scale=f.query_pre_attn_scalar**-0.5,
    windows=_windows(f, types),
    qk_norm=True,
    post_norms=True,
    final_softcap=f.final_logit_softcapping or 0.0,
    **_rotaries(cfg, f.head_dim, types),
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
  return System(model, _MAPS[kind], "lm", options=special_ids(cfg, cfg), refine=tying.refine)


def gemma(cfg: Mapping[str, Any]) -> System:
  """`GemmaForCausalLM`."""
  return _system("gemma", cfg)


def gemma2(cfg: Mapping[str, Any]) -> System:
  """`Gemma2ForCausalLM`."""
  return _system("gemma2", cfg)


def gemma3_text(cfg: Mapping[str, Any]) -> System:
  """`Gemma3ForCausalLM`."""
  return _system("gemma3_text", cfg)
