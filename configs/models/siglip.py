"""SigLIP (arXiv 2303.15343): `siglip:variant=B/16,res=224`.

Sizes: B/16 at 224, 256, 384, 512; L/16 at 256, 384; So400m/14 at 224, 384.
"""

from bigvlm import config
from bigvlm.configs import common


def get_config(arg=None):
  """Model and processor of a SigLIP size.

  Args:
    arg: `variant` (of the image tower; the text tower has the same), `res` in pixels,
      `vocab`, `text_len`, `tiny`.
  """
  a = config.parse_arg(arg, variant="B/16", res=224, vocab=32_000, text_len=64)
  c = common.base(name="siglip")
  image = dict(kind="vit", variant=a.variant, pool="map")
  text = dict(kind="text_tower", variant=a.variant.split("/")[0], vocab=a.vocab)
  if a.tiny:
    image = dict(kind="vit", width=32, depth=2, hidden=64, heads=2, patch=8, pool="map")
    text = dict(kind="text_tower", width=32, depth=2, hidden=64, heads=2, vocab=a.vocab)
    a.res, a.text_len = 16, 8
  c.model = dict(kind="two_tower", encoders=dict(image=image), text=text)
  sizes = {"B/16": "base-patch16", "L/16": "large-patch16", "So400m/14": "so400m-patch14"}
  if a.variant in sizes and not a.tiny:
    c.init = dict(source=f"hf:google/siglip-{sizes[a.variant]}-{a.res}")
  c.processor = dict(
    kind="contrastive",
    image=dict(size=a.res, method="bilinear", antialias=False),
    tokenizer=dict(kind="sentencepiece", path=""),
    text_len=a.text_len,
  )
  return c
