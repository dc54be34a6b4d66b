"""Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783), Mistral (arXiv 2310.06825) and Qwen2
(arXiv 2407.10671) as text models."""

from collections.abc import Mapping, Sequence
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.hub import fields, text
from bigvlm.hub.rotary import rotary
from bigvlm.layers import blocks
from bigvlm.utils import names

_LAYER = (
  *rules.norm("input_layernorm", "norm1"),
  *rules.attention("self_attn", "attn"),
  *rules.norm("post_attention_layernorm", "norm2"),
  *rules.gated("mlp", "mlp"),
)
_RULES = text.whole(_LAYER)


def _llama(
  cfg: Mapping[str, Any], length: int = 2048, windows: Sequence[int] = (0,), **defaults: Any
) -> dict[str, Any]:
  """Decoder config of a `LlamaConfig`, with other `defaults` of a relative of it."""
  decoder, f = text.plain(
    cfg,
    **dict(
      vocab_size=32_000,
      hidden_size=4096,
      intermediate_size=11_008,
      num_hidden_layers=32,
      num_attention_heads=32,
      num_key_value_heads=None,
      hidden_act="silu",
      head_dim=None,
      rms_norm_eps=1e-6,
      tie_word_embeddings=False,
      attention_bias=False,
      mlp_bias=False,
    )
    | defaults,
  )
  return decoder | dict(
    norm="rms_plain",
    eps=f.rms_norm_eps,
    windows=tuple(windows),
    bias=f.attention_bias,
    mlp_bias=f.mlp_bias,
    **rotary(cfg, decoder["head_dim"], length=length, layers=len(windows)),
  )


def _mistral(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `MistralConfig`."""
  window = cfg.get("sliding_window", 4096)
  # 0 would be no window here, and one that sees nothing there.
  if window is not None and window < 1:
    raise ValueError(f"config.json: sliding_window is {window}; null means none")
  sizes = dict(intermediate_size=14_336, num_key_value_heads=8)
  return _llama(cfg, 4096 * 32, (window or 0,), **sizes) | dict(bias=False, mlp_bias=False)


def _qwen2(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `Qwen2Config`; biases on queries, keys and values alone."""
  sizes = dict(vocab_size=151_936, intermediate_size=22_016, num_key_value_heads=32)
  decoder = _llama(cfg, 32_768, windows(cfg), **sizes)
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


TEXTS = {
  "llama": text.Text(_llama, _RULES, (2, None)),
  "mistral": text.Text(_mistral, _RULES, (2, None)),
  "qwen2": text.Text(_qwen2, _RULES),
}
