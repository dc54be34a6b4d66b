"""Gemma 1 and 2 as text models (arXiv 2403.08295, 2408.00118): `gemma:size=2-9b`.

Sizes: 2b, 7b (Gemma), 2-2b, 2-9b, 2-27b (Gemma 2).
"""

from bigvlm import config
from bigvlm.configs import common
from bigvlm.utils import names

_VARIANTS = {
  "2b": "gemma_2b",
  "7b": "gemma_7b",
  "2-2b": "gemma2_2b",
  "2-9b": "gemma2_9b",
  "2-27b": "gemma2_27b",
}

# Arguments of the published sizes.
SIZES = ("size=2b", "size=7b", "size=2-2b", "size=2-9b", "size=2-27b")


def get_config(arg=None):
  """Model of a Gemma size.

  Args:
    arg: `size`, `text_len` in tokens, `tiny`.
  """
  a = config.parse_arg(arg, size="2b", text_len=512)
  c = common.base(name="gemma")
  variant = names.lookup("gemma size", a.size, _VARIANTS)
  decoder = dict(kind="decoder", variant=variant, vocab=256_000)
  if variant.startswith("gemma2"):
    decoder |= dict(windows=(4096, 0))
  if a.tiny:
    decoder |= dict(vocab=512, width=32, depth=2, hidden=64, heads=2, kv_heads=1, head_dim=16)
    a.text_len = 16
  else:
    c.init = dict(source=f"hf:google/gemma-{a.size}")
  c.model = dict(kind="lm", decoder=decoder)
  c.processor = dict(
    kind="prefix_lm",
    image=dict(size=8),
    tokenizer=dict(kind="sentencepiece", path=""),
    text_len=a.text_len,
  )
  return c
