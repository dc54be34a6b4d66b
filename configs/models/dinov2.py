"""DINOv2 encoders (arXiv 2304.07193): `dinov2:variant=L`; S, B, L and g, patch 14.

The published tables are for 518 pixels; `bigvlm.load(..., res=224)` resamples them.
"""

from bigvlm import config
from bigvlm.configs import common
from bigvlm.utils import names

# width, depth, heads, name on the hub.
_SIZES = {
  "S": (384, 12, 6, "small"),
  "B": (768, 12, 12, "base"),
  "L": (1024, 24, 16, "large"),
  "g": (1536, 40, 24, "giant"),
}

# Arguments of the published sizes.
SIZES = ("variant=S", "variant=B", "variant=L", "variant=g")


def get_config(arg=None):
  """Encoder of a DINOv2 size.

  Args:
    arg: `variant`, `res` in pixels, `tiny`.
  """
  a = config.parse_arg(arg, variant="B", res=518)
  c = common.base(name="dinov2")
  width, depth, heads, name = names.lookup("dinov2 variant", a.variant, _SIZES)
  image = dict(width=width, depth=depth, hidden=4 * width, heads=heads, patch=14)
  if a.variant == "g":  # Three matrices with the parameters of two.
    image |= dict(hidden=(4 * width * 2 // 3 + 7) // 8 * 8, gated=True, act="silu")
  if a.tiny:
    image |= dict(width=32, depth=2, hidden=64, heads=2, patch=8)
    a.res = 16
  else:
    c.init = dict(source=f"hf:facebook/dinov2-{name}")
  image = dict(kind="vit", act="gelu") | image
  image |= dict(
    layer_scale=1.0,
    resample="bicubic",
    cls=True,
    cls_posemb=True,
    keep_cls=True,
    pool="tok",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
  )
  c.model = dict(kind="encoder", encoders=dict(image=image))
  c.processor = dict(
    kind="contrastive",
    image=dict(size=a.res, method="bicubic", antialias=True),
    tokenizer=dict(kind="sentencepiece", path=""),
    text_len=1,
  )
  return c
