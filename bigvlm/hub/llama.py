"""Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783), Mistral (arXiv 2310.06825) and Qwen2
(arXiv 2407.10671) as text models."""

from collections.abc import Mapping, Sequence
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields, tying
from bigvlm.hub.rotary import rotary
from bigvlm.hub.system import System
from bigvlm.layers import blocks
from bigvlm.utils import names

_LAYER = (
  *rules.norm("input_layernorm", "norm1"),
  *rules.attention(
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "attn"
  ),
  *rules.norm("post_attention_layernorm", "norm2"),
  *rules.linear("mlp.gate_proj", "mlp/gate"),
  *rules.linear("mlp.up_proj", "mlp/up"),
  *rules.linear("mlp.down_proj", "mlp/down"),
)
_RULES = (
  Rule("model.embed_tokens.weight", "decoder/embedding"),
  *rules.under(_LAYER, "model.layers.{i}.", "decoder/blocks/*/"),
  *rules.norm("model.norm", "decoder/norm"),
  Rule("lm_head.weight", "decoder/head", "v d -> d v"),
)
# `model_type` -> rules of the decoder, canonical names as in a text model's file.
RULES = dict.fromkeys(("llama", "mistral", "qwen2"), _RULES)
TIED = (("lm_head.weight", "model.embed_tokens.weight"),)
# Buffers in files of old versions.
BUFFERS = (r".*\.rotary_emb\.inv_freq",)
_MAP = CkptMap(_RULES, tied=TIED, carry=BUFFERS)


def _decoder(
  cfg: Mapping[str, Any], length: int, windows: Sequence[int] = (0,), **defaults: Any
) -> tuple[dict[str, Any], Any]:
  f = fields.fields(
    cfg,
    **dict(
      hidden_size=4096,
      num_hidden_layers=32,
      num_attention_heads=32,
      num_key_value_heads=None,
      hidden_act="silu",
      head_dim=None,
      rms_norm_eps=1e-6,
      tie_word_embeddings=False,
    )
    | defaults,
  )
  head_dim = f.head_dim or f.hidden_size // f.num_attention_heads
  decoder = dict(
    kind="decoder",
    vocab=f.vocab_size,
    width=f.hidden_size,
    depth=f.num_hidden_layers,
    hidden=f.intermediate_size,
    heads=f.num_attention_heads,
    kv_heads=f.num_key_value_heads or f.num_attention_heads,
    head_dim=head_dim,
    tied=f.tie_word_embeddings,
    embed_scale=False,
    norm="rms_plain",
    act=fields.activation(f.hidden_act),
    eps=f.rms_norm_eps,
    windows=tuple(windows),
    **rotary(cfg, head_dim, length=length, layers=len(windows)),
  )
  return decoder, f


def llama_decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `LlamaConfig`."""
  decoder, f = _decoder(
    cfg,
    2048,
    vocab_size=32_000,
    intermediate_size=11_008,
    attention_bias=False,
    mlp_bias=False,
  )
  return decoder | dict(bias=f.attention_bias, mlp_bias=f.mlp_bias)


def mistral_decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `MistralConfig`."""
  f = fields.fields(cfg, sliding_window=4096, num_key_value_heads=8)
  # 0 would be no window here, and one that sees nothing there.
  if f.sliding_window is not None and f.sliding_window < 1:
    raise ValueError(f"config.json: sliding_window is {f.sliding_window}; null means none")
  sizes = dict(vocab_size=32_000, intermediate_size=14_336)
  decoder, _ = _decoder(
    cfg | dict(num_key_value_heads=f.num_key_value_heads),
    4096 * 32,
    (f.sliding_window or 0,),
    **sizes,
  )
  return decoder


def qwen2_decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `Qwen2Config`; biases on queries, keys and values alone."""
  f = fields.fields(cfg, num_key_value_heads=32)
  decoder, _ = _decoder(
    cfg | dict(num_key_value_heads=f.num_key_value_heads),
    32_768,
    windows(cfg),
    vocab_size=151_936,
    intermediate_size=22_016,
  )
  return decoder | dict(bias=True, out_bias=False, mlp_bias=False)


def windows(cfg: Mapping[str, Any], first: int = 28, depth: int = 32) -> tuple[int, ...]:
  """Windows of the layers of a period, as a `Qwen2Config` or a relative of it says.

  Args:
    cfg: the config. first: default of `max_window_layers`. depth: of `num_hidden_layers`.

  Raises:
    ValueError: kinds of layers that are unknown or not as many as layers, or a window that is off.
  """
  f = fields.fields(
    cfg,
    num_hidden_layers=depth,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=first,
    layer_types=None,
  )
  window = f.sliding_window if f.use_sliding_window else None
  depth, types = f.num_hidden_layers, f.layer_types
  if types is None:
    short = [window is not None and i >= f.max_window_layers for i in range(depth)]
  else:
    kinds = ("sliding_attention", "full_attention")
    for found in types:
      if found not in kinds:
        raise ValueError(names.unknown("layer type in config.json", found, kinds))
    if len(types) != depth:
      raise ValueError(f"layer_types in config.json has {len(types)} entries for {depth} layers")
    short = [found == kinds[0] for found in types]
    if any(short) and not window:
      raise ValueError(
        "config.json: layer_types has sliding_attention, but no sliding window is on"
      )
  return blocks.period([(window or 0) * s for s in short])


# `model_type` of a text config -> reader of it.
DECODERS = {"llama": llama_decoder, "mistral": mistral_decoder, "qwen2": qwen2_decoder}
# `model_type` -> end and pad ids of its class.
ENDS = {"llama": (2, None), "mistral": (2, None), "qwen2": (None, None)}


def _system(kind: str, cfg: Mapping[str, Any]) -> System:
  model = dict(kind="lm", decoder=DECODERS[kind](cfg))
  return System(model, _MAP, "lm", options=fields.ends(cfg, *ENDS[kind]), refine=tying.refine)


def llama(cfg: Mapping[str, Any]) -> System:
  """`LlamaForCausalLM`."""
  return _system("llama", cfg)


def mistral(cfg: Mapping[str, Any]) -> System:
  """`MistralForCausalLM`."""
  return _system("mistral", cfg)


def qwen2(cfg: Mapping[str, Any]) -> System:
  """`Qwen2ForCausalLM`."""
  return _system("qwen2", cfg)
