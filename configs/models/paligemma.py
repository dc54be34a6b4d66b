"""PaliGemma (arXiv 2407.07726) and PaliGemma 2 (arXiv 2412.03555): `paligemma:size=3b,res=224`.

Sizes: 3b (PaliGemma), 2-3b, 2-10b, 2-28b (PaliGemma 2); each at 224, 448, 896.
"""

from bigvlm import config
from bigvlm.configs import common
from bigvlm.utils import names

_DECODERS = {"3b": "gemma_2b", "2-3b": "gemma2_2b", "2-10b": "gemma2_9b", "2-28b": "gemma2_27b"}

# Arguments of the published sizes.
SIZES = tuple(
  f"size={size},res={res}" for size in ("3b", "2-3b", "2-10b", "2-28b") for res in (224, 448, 896)
)


def get_config(arg=None):
  """Model and processor of a PaliGemma size.

  Args:
    arg: `size`, `res` in pixels, `text_len` (default 128 at 224, else 512), `tiny`.
  """
  a = config.parse_arg(arg, size="3b", res=224, text_len=0)
  c = common.base(name="paligemma")
  image = dict(kind="vit", variant="So400m/14")
  decoder = dict(kind="decoder", variant=names.lookup("size", a.size, _DECODERS))
  if a.tiny:
    image = dict(kind="vit", width=32, depth=2, hidden=64, heads=2, patch=8)
    decoder |= dict(vocab=257_152, width=32, depth=2, hidden=64, heads=2, kv_heads=1, head_dim=16)
    a.res, a.text_len = 16, a.text_len or 16
  else:
    name = "-3b" if a.size == "3b" else a.size
    c.init = dict(source=f"hf:google/paligemma{name}-pt-{a.res}")
  c.model = dict(
    kind="vlm",
    encoders=dict(image=image),
    connector=dict(kind="linear"),
    fusion=dict(kind="scatter"),
    decoder=decoder,
  )
  c.processor = dict(
    kind="prefix_lm",
    image=dict(size=a.res, method="bilinear", antialias=True),
    tokenizer=dict(kind="sentencepiece", path=""),
    text_len=a.text_len or (128 if a.res == 224 else 512),
  )
  return c
