"""Fuyu (Adept's Fuyu-8B, 2023): patches go straight into Persimmon, by one linear map."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap
from bigvlm.hub import fields, texts, tying
from bigvlm.hub.system import System
from bigvlm.hub.text import BUFFERS

# Fields of the text model in files that have them beside the others.
_TEXT = (
  *("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "eos_token_id"),
  *("num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "qk_layernorm"),
  *("rope_scaling", "rope_theta"),
)
# Other layouts to the hub's.
_RENAME = (
  (r"^model\.(?=(language_model|vision_embed_tokens)\.)", ""),
  (r"^lm_head\.", "language_model.lm_head."),
  (r"^language_model\.(?!(model|lm_head)\.)", "language_model.model."),
)
_TIED = (("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),)


def fuyu(cfg: Mapping[str, Any]) -> System:
  """`FuyuForCausalLM`."""
  top = fields.fields(cfg, image_token_id=71_011, tie_word_embeddings=False)
  inner = cfg.get("text_config")
  if inner is None:
    inner = {key: cfg[key] for key in _TEXT if key in cfg}
  decoder = texts.body(inner, "persimmon") | dict(tied=top.tie_word_embeddings)
  patch = fields.patch(cfg, 30)
  model = dict(
    kind="vlm",
    encoders=dict(image=dict(kind="raw", patch=patch)),
    connector=dict(kind="linear", packed=True, zero_init=False),
    decoder=decoder,
  )
  ckpt_map = CkptMap(
    (
      *rules.linear("vision_embed_tokens", "connector/linear"),
      *texts.under(inner, "language_model.", "persimmon"),
    ),
    _RENAME,
    _TIED,
    BUFFERS,
  )
  options = dict(media="flat", image_token=top.image_token_id)
  options |= texts.special_ids(cfg, inner, "persimmon")
  size = fields.size(cfg.get("image_size") or 300)
  return System(model, ckpt_map, "vlm", size, options=options, refine=tying.refine)
