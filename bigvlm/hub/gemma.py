"""Gemma 1, 2 and 3 as text models (arXiv 2403.08295, 2408.00118, 2503.19786)."""

from collections.abc import Mapping, Sequence
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.hub import fields, text
from bigvlm.hub import rotary as rotary_lib
from bigvlm.utils import names

_LAYER = (
  *rules.norm("input_layernorm", "norm1"),
  *rules.attention("self_attn", "attn"),
  *rules.norm("self_attn.q_norm", "attn/q_norm"),
  *rules.norm("self_attn.k_norm", "attn/k_norm"),
  *rules.gated("mlp", "mlp"),
)
# The same stored name is another norm in Gemma 1 than in its successors.
_NORMS = rules.norm("post_attention_layernorm", "norm2")
_POST_NORMS = (
  *rules.norm("post_attention_layernorm", "post_norm1"),
  *rules.norm("pre_feedforward_layernorm", "norm2"),
  *rules.norm("post_feedforward_layernorm", "post_norm2"),
)


_GEMMA, _GEMMA_POST = text.whole((*_LAYER, *_NORMS)), text.whole((*_LAYER, *_POST_NORMS))


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


def _plain(
  cfg: Mapping[str, Any], act: str | None = None, **defaults: Any
) -> tuple[dict[str, Any], Any]:
  """See `text.plain`; `act` is the activation, else the field `hidden_activation` tells it."""
  act = act or cfg.get("hidden_activation", "gelu_pytorch_tanh")
  common = dict(head_dim=256, rms_norm_eps=1e-6, attention_bias=False, tie_word_embeddings=True)
  decoder, f = text.plain(cfg | {"hidden_act": act}, hidden_act=act, **common, **defaults)
  more = dict(embed_scale=True, eps=f.rms_norm_eps, bias=f.attention_bias, mlp_bias=False)
  return decoder | more, f


def _gemma(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `GemmaConfig`."""
  act = cfg.get("hidden_act", "gelu_pytorch_tanh")
  decoder, _ = _plain(
    cfg,
    # The first release said "gelu" and meant its approximation.
    "gelu_pytorch_tanh" if act == "gelu" else act,
    vocab_size=256_000,
    hidden_size=3072,
    intermediate_size=24_576,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=16,
  )
  return decoder | rotary_lib.rotary(cfg, decoder["head_dim"], length=8192)


_GEMMA_2 = dict(
  hidden_size=2304,
  intermediate_size=9216,
  num_hidden_layers=26,
  num_attention_heads=8,
  num_key_value_heads=4,
  query_pre_attn_scalar=256,
  sliding_window=4096,
)


def _gemma2(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `Gemma2Config`."""
  caps = dict(final_logit_softcapping=30.0, attn_logit_softcapping=50.0)
  decoder, f = _plain(cfg, vocab_size=256_000, **caps, **_GEMMA_2)
  types = _layer_types(cfg, f.num_hidden_layers, 2)
  return decoder | dict(
    query_scale=f.query_pre_attn_scalar**-0.5,
    windows=_windows(f, types),
    post_norms=True,
    attn_softcap=f.attn_logit_softcapping or 0.0,
    final_softcap=f.final_logit_softcapping or 0.0,
    **rotary_lib.rotary(cfg, decoder["head_dim"], length=8192, layers=len(types)),
  )


def _gemma3(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `Gemma3TextConfig`; like the reference it has no attention soft-cap.

  Raises:
    ValueError: the config asks for text that sees what comes after it.
  """
  own = dict(use_bidirectional_attention=False, sliding_window_pattern=6)
  decoder, f = _plain(cfg, vocab_size=262_208, final_logit_softcapping=None, **own, **_GEMMA_2)
  if f.use_bidirectional_attention:
    raise ValueError("config.json: use_bidirectional_attention is not supported for Gemma 3")
  types = _layer_types(cfg, f.num_hidden_layers, f.sliding_window_pattern)
  return decoder | dict(
    query_scale=f.query_pre_attn_scalar**-0.5,
    windows=_windows(f, types),
    qk_norm=True,
    post_norms=True,
    final_softcap=f.final_logit_softcapping or 0.0,
    **_rotaries(cfg, decoder["head_dim"], types),
  )


TEXTS = {
  "gemma": text.Text(_gemma, _GEMMA, (1, 0)),
  "gemma2": text.Text(_gemma2, _GEMMA_POST, (1, 0)),
  "gemma3_text": text.Text(_gemma3, _GEMMA_POST, (1, 0)),
}
