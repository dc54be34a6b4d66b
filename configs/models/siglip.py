"""SigLIP (arXiv 2303.15343) and SigLIP 2 (arXiv 2502.14786): `siglip:variant=B/16,res=224`.

Sizes: B/16 at 224, 256, 384, 512; L/16 at 256, 384; So400m/14 at 224, 384. With `version=2` also
B/32 at 256, So400m/16 and g-opt/16 at 256, 384.
"""

from bigvlm import config
from bigvlm.configs import common

# Names on the hub of each version.
_NAMES = {
  1: {"B/16": "base-patch16", "L/16": "large-patch16", "So400m/14": "so400m-patch14"},
  2: {
    "B/32": "base-patch32",
    "B/16": "base-patch16",
    "L/16": "large-patch16",
    "So400m/14": "so400m-patch14",
    "So400m/16": "so400m-patch16",
    "g-opt/16": "giant-opt-patch16",
  },
}

# Arguments of the published sizes.
SIZES = (
  "variant=B/16",
  "variant=B/16,res=384",
  "variant=L/16,res=256",
  "variant=So400m/14,res=384",
  "variant=B/16,version=2",
  "variant=So400m/14,res=384,version=2",
)


def get_config(arg=None):
  """Model and processor of a SigLIP size.

  Args:
    arg: `variant` of the image tower (the text tower has the same, or So400m's beside g-opt), `res`
      in pixels, `version` 1 or 2, `vocab` (0 = the version's), `text_len`, `tiny`.
  """
  a = config.parse_arg(arg, variant="B/16", res=224, version=1, vocab=0, text_len=64)
  c = common.base(name="siglip")
  a.vocab = a.vocab or (256_000 if a.version == 2 else 32_000)
  image = dict(kind="vit", variant=a.variant, pool="map")
  tower = a.variant.split("/")[0]
  text = dict(kind="text_tower", variant=tower, vocab=a.vocab)
  if tower == "g-opt":
    text |= dict(variant="So400m", out_dim=1536)
  if a.tiny:
    image = dict(kind="vit", width=32, depth=2, hidden=64, heads=2, patch=8, pool="map")
    text = dict(kind="text_tower", width=32, depth=2, hidden=64, heads=2, vocab=a.vocab)
    a.res, a.text_len = 16, 8
  elif a.variant in _NAMES[a.version]:
    prefix = "siglip2" if a.version == 2 else "siglip"
    c.init = dict(source=f"hf:google/{prefix}-{_NAMES[a.version][a.variant]}-{a.res}")
  c.model = dict(kind="two_tower", encoders=dict(image=image), text=text)
  c.processor = dict(
    kind="contrastive",
    image=dict(size=a.res, method="bilinear", antialias=False),
    tokenizer=dict(kind="sentencepiece", path=""),
    text_len=a.text_len,
  )
  return c
