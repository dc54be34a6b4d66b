"""T5 and its relatives, text alone: `t5:variant=t5_v1_1_base`.

Variants: t5_ small, base, large, 3b, 11b (arXiv 1910.10683); t5_v1_1_ and mt5_ small, base, large,
xl, xxl (FLAN-T5 is t5_v1_1_; mT5: arXiv 2010.11934); umt5_ small, base, xl, xxl (arXiv 2304.09151);
ul2_20b (arXiv 2205.05131).
"""

from bigvlm import config
from bigvlm.configs import common

# Arguments of the published sizes.
SIZES = tuple(
  f"variant={kind}_{size}"
  for kind in ("t5", "t5_v1_1", "mt5")
  for size in ("small", "base", "large")
) + ("variant=umt5_small", "variant=umt5_base", "variant=ul2_20b")


def get_config(arg=None):
  """Model and processor of a size.

  Args:
    arg: `variant`, `text_len` and `target_len` in tokens, `tiny`.
  """
  a = config.parse_arg(arg, variant="t5_small", text_len=512, target_len=128)
  c = common.base(name="t5")
  decoder = dict(kind="encdec", variant=a.variant)
  if a.tiny:
    decoder |= dict(vocab=384, width=32, depth=2, hidden=64, heads=2, head_dim=16)
    a.text_len, a.target_len = 16, 8
  kind = a.variant.split("_")[0]
  c.hub = dict(model_type=kind if kind in ("mt5", "umt5") else "t5")
  c.model = dict(kind="lm", decoder=decoder)
  c.processor = dict(
    kind="seq2seq",
    image=dict(size=8),
    tokenizer=dict(kind="sentencepiece", path=""),
    text_len=a.text_len,
    target_len=a.target_len,
  )
  return c
