"""Gemma 3 with vision (arXiv 2503.19786) of transformers."""

import math
from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields, gemma, paligemma, texts
from bigvlm.hub.system import System
from bigvlm.utils import names

_MAP = CkptMap(
  (
    *paligemma.TOWER,
    *rules.norm("multi_modal_projector.mm_soft_emb_norm", "connector/norm"),
    Rule("multi_modal_projector.mm_input_projection_weight", "connector/linear/kernel"),
    *rules.under(gemma.TEXTS["gemma3_text"].rules, "language_model.", ""),
  ),
  paligemma.RENAME,
  paligemma.TIED,
  paligemma.CARRY,
)


def gemma3(cfg: Mapping[str, Any]) -> System:
  """`Gemma3ForConditionalGeneration`; like the reference it never soft-caps its logits.

  Raises:
    ValueError: a text or vision model that it is not made of, or patches that do not divide into
      the tokens of an image.
  """
  vision, text = cfg.get("vision_config"), fields.sub(cfg, "text_config")
  encoder, image_size = paligemma.tower(vision, {})
  kind = text.get("model_type", "gemma3_text")
  if kind != "gemma3_text":
    raise ValueError(names.unknown("text_config.model_type", kind, ("gemma3_text",)))
  top = fields.fields(cfg, mm_tokens_per_image=256, tie_word_embeddings=True)
  side, tokens = image_size[0] // encoder["patch"], math.isqrt(top.mm_tokens_per_image)
  if image_size[0] != image_size[1] or not 0 < tokens <= side:
    raise ValueError(
      f"config.json: {list(image_size)} pixels in patches of {encoder['patch']} do not pool into "
      f"mm_tokens_per_image={top.mm_tokens_per_image}"
    )
  decoder = gemma.TEXTS["gemma3_text"].decoder(text) | dict(
    tied=top.tie_word_embeddings, final_softcap=0.0
  )
  connector = dict(kind="pool", kernel=side // tokens, eps=encoder["eps"])
  model = dict(kind="vlm", encoders=dict(image=encoder), connector=connector, decoder=decoder)
  options = dict(image_token=paligemma.image_token(cfg, 262_144), types="images")
  options |= texts.special_ids(cfg, text, "gemma3_text")
  return System(model, _MAP, "vlm", image_size, options=options)
