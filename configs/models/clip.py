"""CLIP (arXiv 2103.00020) and MetaCLIP (arXiv 2309.16671): `clip:variant=L/14,res=336`.

Sizes: B/32, B/16 and L/14 at 224 (L/14 at 336 too); `data` openai, metaclip-400m or
metaclip-fullcc2.5b, which have the same towers, and MetaCLIP's H/14.
"""

from bigvlm import config
from bigvlm.configs import common
from bigvlm.utils import names

# Text tower and embedding width of each image tower.
_TEXTS = {
  "B/32": (dict(width=512, depth=12, hidden=2048, heads=8), 512),
  "B/16": (dict(width=512, depth=12, hidden=2048, heads=8), 512),
  "L/14": (dict(width=768, depth=12, hidden=3072, heads=12), 768),
  "H/14": (dict(width=1024, depth=24, hidden=4096, heads=16), 1024),
}
_OPENAI = {"B/32": "base-patch32", "B/16": "base-patch16", "L/14": "large-patch14"}
_METACLIP = {"B/32": "b32", "B/16": "b16", "L/14": "l14", "H/14": "h14"}

# Arguments of the published sizes.
SIZES = (
  "variant=B/32",
  "variant=B/16",
  "variant=L/14",
  "variant=L/14,res=336",
  "variant=B/32,data=metaclip-400m",
  "variant=L/14,data=metaclip-fullcc2.5b",
)


def get_config(arg=None):
  """Model and processor of a CLIP size.

  Args:
    arg: `variant` of the image tower, `res` in pixels, `data` whose weights, `tiny`.
  """
  a = config.parse_arg(arg, variant="B/32", res=224, data="openai")
  c = common.base(name="clip")
  text, out_dim = names.lookup("clip variant", a.variant, _TEXTS)
  image, vocab, length = dict(variant=a.variant), 49_408, 77
  if a.tiny:
    text, out_dim = dict(width=32, depth=2, hidden=64, heads=2), 32
    image, vocab, length = dict(width=32, depth=2, hidden=64, heads=2, patch=8), 512, 8
    a.res = 16
  elif a.data == "openai":
    size = names.lookup("clip variant of openai", a.variant, _OPENAI)
    c.init = dict(source=f"hf:openai/clip-vit-{size}" + ("-336" if a.res == 336 else ""))
  else:
    c.init = dict(source=f"hf:facebook/{a.data.replace('-', f'-{_METACLIP[a.variant]}-', 1)}")
  layers = dict(act="quick_gelu", eps=1e-5)
  image |= dict(
    kind="vit",
    **layers,
    patch_bias=False,
    resample="bicubic",
    cls=True,
    cls_posemb=True,
    pre_norm=True,
    final_norm="pooled",
    pool="tok",
    out_dim=out_dim,
    head_bias=False,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
  )
  c.model = dict(
    kind="two_tower",
    encoders=dict(image=image),
    text=dict(
      kind="text_tower",
      **text,
      **layers,
      vocab=vocab,
      length=length,
      out_dim=out_dim,
      head_bias=False,
      masked=True,
      pool="eos",
      eos=vocab - 1,
    ),
    temperature_init=1 / 0.07,
    bias_init=None,
  )
  c.processor = dict(
    kind="contrastive",
    image=dict(size=a.res, method="bicubic", antialias=True),
    tokenizer=dict(kind="sentencepiece", path=""),
    text_len=length,
  )
  return c
