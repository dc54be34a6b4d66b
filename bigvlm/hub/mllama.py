"""Llama 3.2-Vision (arXiv 2407.21783, section 7) of transformers."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields
from bigvlm.hub import text as text_lib
from bigvlm.hub.rotary import rotary
from bigvlm.hub.system import System

_VISION_LAYER = (
  *rules.norm("input_layernorm", "norm1"),
  *rules.attention("self_attn", "attn"),
  Rule("gate_attn", "gate1"),
  *rules.norm("post_attention_layernorm", "norm2"),
  *rules.mlp("mlp.", "mlp"),
  Rule("gate_ffn", "gate2"),
)
_VISION = (
  *rules.linear("patch_embedding", "patch", "o c p q -> p q c o"),
  Rule("class_embedding", "cls", "d -> 1 1 d"),
  Rule("gated_positional_embedding.embedding", "pos"),
  Rule("gated_positional_embedding.gate", "pos_gate"),
  Rule("gated_positional_embedding.tile_embedding.weight", "tile_pos", "w (t n d) -> w t n d"),
  Rule("pre_tile_positional_embedding.embedding.weight", "pre_tile", "w (t d) -> w t d"),
  Rule("pre_tile_positional_embedding.gate", "pre_tile_gate"),
  Rule("post_tile_positional_embedding.embedding.weight", "post_tile", "w (t d) -> w t d"),
  Rule("post_tile_positional_embedding.gate", "post_tile_gate"),
  *rules.norm("layernorm_pre", "pre_norm"),
  *rules.under(_VISION_LAYER, "transformer.layers.{i}.", "blocks/*/"),
  *rules.norm("layernorm_post", "post_norm"),
  *rules.under(_VISION_LAYER, "global_transformer.layers.{i}.", "globals/*/"),
)
# Of a layer with self-attention, or with cross-attention.
_LAYER = (
  *rules.norm("input_layernorm", "norm1"),
  *rules.attention("self_attn", "attn"),
  *rules.norm("input_layernorm", "norm_cross"),
  *rules.attention("cross_attn", "cross"),
  *rules.norm("cross_attn.q_norm", "cross/q_norm"),
  *rules.norm("cross_attn.k_norm", "cross/k_norm"),
  Rule("cross_attn_attn_gate", "gate_cross"),
  *rules.norm("post_attention_layernorm", "norm2"),
  *rules.gated("mlp", "mlp"),
  Rule("cross_attn_mlp_gate", "gate2"),
)
_TEXT = text_lib.whole(_LAYER)
# Other layouts to the hub's.
_RENAME = (
  (r"^model\.(?=(language_model|vision_model|multi_modal_projector)\.)", ""),
  (r"^lm_head\.", "language_model.lm_head."),
  (r"^language_model\.(?=(layers|embed_tokens|norm)\.)", "language_model.model."),
)
_MAP = CkptMap(
  (
    *rules.under(_VISION, "vision_model.", "encoders/image/"),
    *rules.linear("multi_modal_projector", "connector/linear"),
    *rules.under(_TEXT, "language_model.", ""),
  ),
  _RENAME,
)
_TEXT_MAP = CkptMap(_TEXT)
# Rows of the embedding table beyond the vocabulary: ids that are read and never come out.
_MORE_ROWS = 8


def _vision(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
  """Encoder config and image size of a `MllamaVisionConfig`.

  Raises:
    ValueError: an output width that is not what the layers give.
  """
  f = fields.fields(
    cfg,
    hidden_size=1280,
    hidden_act="gelu",
    num_hidden_layers=32,
    num_global_layers=8,
    attention_heads=cfg.get("num_attention_heads", 16),
    intermediate_size=5120,
    vision_output_dim=7680,
    image_size=448,
    norm_eps=1e-5,
    max_num_tiles=4,
    intermediate_layers_indices=None,
    supported_aspect_ratios=None,
  )
  keep = f.intermediate_layers_indices
  keep = (3, 7, 15, 23, 30) if keep is None else tuple(keep)
  ratios = f.supported_aspect_ratios
  out = f.hidden_size * (1 + len(keep))
  if f.vision_output_dim != out:
    raise ValueError(
      f"config.json: vision_output_dim is {f.vision_output_dim}, but hidden_size and the "
      f"intermediate layers make {out}"
    )
  encoder = dict(
    kind="tiled",
    width=f.hidden_size,
    depth=f.num_hidden_layers,
    depth_global=f.num_global_layers,
    hidden=f.intermediate_size,
    heads=f.attention_heads,
    patch=fields.patch(cfg, 14),
    patch_bias=False,
    act=fields.activation(f.hidden_act),
    eps=f.norm_eps,
    bias=False,
    mlp_bias=True,
    tiles=f.max_num_tiles,
    ways=1 + (8 if ratios is None else len(ratios)),
    keep=keep,
  )
  return encoder, fields.size(f.image_size)


def _decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `MllamaTextConfig`."""
  decoder, f = text_lib.plain(
    cfg,
    vocab_size=128_256,
    hidden_size=4096,
    hidden_act="silu",
    num_hidden_layers=40,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14_336,
    rms_norm_eps=1e-5,
    cross_attention_layers=None,
    tie_word_embeddings=False,
  )
  layers = f.cross_attention_layers
  return decoder | dict(
    vocab=f.vocab_size + _MORE_ROWS,
    out_vocab=f.vocab_size,
    tied=False,
    norm="rms_plain",
    eps=f.rms_norm_eps,
    cross_layers=tuple(range(3, 40, 5) if layers is None else layers),
    cross=dict(qk_norm=True, blind="all", blind_mlp=False),
    **rotary(cfg, decoder["head_dim"], theta=500_000.0, length=131_072),
  )


def _ends(*configs: Mapping[str, Any]) -> dict[str, Any]:
  """Options of generation: ids of the first config that has them, else the class's."""
  found = dict(eos=(), pad=None)
  for cfg in configs:
    own = fields.ends(cfg)
    found = dict(
      eos=found["eos"] or own["eos"], pad=own["pad"] if found["pad"] is None else found["pad"]
    )
  return dict(eos=found["eos"] or (128_001,), pad=128_004 if found["pad"] is None else found["pad"])


def mllama(cfg: Mapping[str, Any]) -> System:
  """`MllamaForConditionalGeneration`."""
  encoder, image_size = _vision(fields.sub(cfg, "vision_config"))
  text = fields.sub(cfg, "text_config")
  model = dict(
    kind="vlm",
    encoders=dict(image=encoder),
    connector=dict(kind="linear"),
    fusion=dict(kind="memory"),
    decoder=_decoder(text),
  )
  options = dict(media="tiles") | _ends(cfg, text)
  return System(model, _MAP, "memory", image_size, options=options)


def text(cfg: Mapping[str, Any]) -> System:
  """`MllamaForCausalLM`: without pictures the layers with cross-attention are skipped."""
  return System(dict(kind="lm", decoder=_decoder(cfg)), _TEXT_MAP, "lm", options=_ends(cfg))
