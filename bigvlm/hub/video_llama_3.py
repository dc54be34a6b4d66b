"""VideoLLaMA 3 (arXiv 2501.13106) of transformers."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap
from bigvlm.hub import clip, fields, qwen2_vl, texts, tying
from bigvlm.hub.system import System
from bigvlm.hub.text import BUFFERS

_PATCH = rules.linear("embeddings.patch_embedding", "patch", "o c p q -> 1 p q c o")
_VISION = (*_PATCH, *(r for r in clip.SIGLIP_VISION if r.src not in {p.src for p in _PATCH}))
# Other layouts to the hub's.
_RENAME = ((r"^(?=(language_model|vision_model|projector)\.)", "model."),)
_TIED = (("lm_head.weight", "model.language_model.embed_tokens.weight"),)
# The largest side of the squares of patches that become one; who prepares a video says which.
_MERGES = 4


def video_llama_3(cfg: Mapping[str, Any]) -> System:
  """`VideoLlama3ForConditionalGeneration`."""
  vision, text = fields.sub(cfg, "vision_config"), fields.sub(cfg, "text_config")
  f = fields.fields(
    vision,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
  )
  patch = fields.patch(vision, 16)
  encoder = dict(
    kind="packed",
    **clip.stack(f),
    patch=patch,
    patch_bias=True,
    final_norm="tokens",
    rope_base=qwen2_vl.axial(vision),
    merges=_MERGES,
  )
  top = fields.fields(
    cfg, tie_word_embeddings=False, image_token_id=151_655, video_token_id=151_656
  )
  decoder = texts.body(text, "qwen2")
  decoder["tied"] = bool(top.tie_word_embeddings or decoder["tied"])
  ckpt_map = CkptMap(
    (
      *rules.under(_VISION, "model.vision_model.", "encoders/image/"),
      *rules.mlp("model.projector.readout.", "connector/mlp", "0", "2"),
      *texts.beside(text, "model.language_model.", "qwen2"),
    ),
    _RENAME,
    _TIED,
    BUFFERS,
  )
  model = dict(
    kind="vlm", encoders=dict(image=encoder), connector=dict(kind="merger"), decoder=decoder
  )
  options = dict(
    media="merged_grids",
    image_token=top.image_token_id,
    video_token=top.video_token_id,
    **texts.special_ids(cfg, text, "qwen2"),
  )
  return System(model, ckpt_map, "vlm", (patch, patch), options=options, refine=tying.refine)
