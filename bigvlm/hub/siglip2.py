"""SigLIP 2 NaFlex (arXiv 2502.14786) of transformers.

The checkpoints of fixed size are `SiglipModel`, in `bigvlm.hub.clip`.
"""

import math
from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap
from bigvlm.hub import clip, fields
from bigvlm.hub.system import System

_PATCH = rules.linear("embeddings.patch_embedding", "patch", "o (p q c) -> p q c o")
_VISION = (*_PATCH, *(r for r in clip.SIGLIP_VISION if r.src not in {p.src for p in _PATCH}))
_DUAL = CkptMap(
  (*rules.under(_VISION, "vision_model.", "encoders/image/"), *clip.SIGLIP_TEXT),
  carry=clip.BUFFERS,
)
_ENCODER = CkptMap(
  rules.under(_VISION, "vision_model.", "encoders/image/"),
  rename=((r"^(?!vision_model\.)", "vision_model."),),
  carry=clip.BUFFERS,
)


def vision(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
  """Encoder config of a `Siglip2VisionConfig`, and the image size that fills its table.

  Raises:
    ValueError: a number of patches that is not a square.
  """
  count = fields.fields(cfg, num_patches=256).num_patches
  side = math.isqrt(count)
  if side**2 != count:
    raise ValueError(f"config.json: num_patches is {count}, which is not a square")
  built, _ = clip.siglip_vision(cfg)
  built |= dict(kind="naflex", table=(side, side), resample="bilinear_antialias")
  return built, (side * built["patch"], side * built["patch"])


def dual(cfg: Mapping[str, Any]) -> System:
  """`Siglip2Model`."""
  built, image_size = vision(fields.sub(cfg, "vision_config"))
  text = clip.siglip_text(fields.sub(cfg, "text_config"))
  model = dict(kind="two_tower", encoders=dict(image=built), text=text)
  return System(model, _DUAL, "dual", image_size, text["length"], dict(patches=True))


def encoder(cfg: Mapping[str, Any]) -> System:
  """`Siglip2VisionModel`."""
  built, image_size = vision(cfg)
  model = dict(kind="encoder", encoders=dict(image=built))
  return System(model, _ENCODER, "encoder", image_size, options=dict(patches=True))
