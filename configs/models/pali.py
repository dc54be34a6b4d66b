"""PaLI (arXiv 2209.06794), PaLI-X (arXiv 2305.18565), PaLI-3 (arXiv 2310.09199): `pali:size=17b`.

A ViT whose patches stand before the text in the input of an encoder-decoder. Sizes: 3b, 15b, 17b
(PaLI), x (PaLI-X, 55 B), 3 (PaLI-3, 5 B). No weights are public. The widths of the text models of
PaLI-X and PaLI-3 are not either: those here are UL2's and T5 1.1's, with the number of layers and
of parameters that the papers name.
"""

from bigvlm import config
from bigvlm.configs import common
from bigvlm.utils import names

# ViT-22B (arXiv 2302.05442): attention and MLP in parallel, normed queries and keys.
_VIT_22B = dict(
  variant="22B/14",
  norm="rms_plain",
  parallel=True,
  qk_norm=True,
  bias=False,
  out_bias=True,
  mlp_bias=True,
)
_SIZES = {
  "3b": (dict(variant="G/14"), "mt5_large"),
  "15b": (dict(variant="G/14"), "mt5_xxl"),
  "17b": (dict(variant="e/14"), "mt5_xxl"),
  "x": (_VIT_22B, "ul2_32b"),
  "3": (dict(variant="G/14"), "ul2_3b"),
}

# Arguments of the published sizes.
SIZES = ("size=3b", "size=15b", "size=17b", "size=x", "size=3")


def get_config(arg=None):
  """Model and processor of a size.

  Args:
    arg: `size`, `res` in pixels (224; PaLI 588, PaLI-X 756, PaLI-3 812 and 1064), `text_len` and
      `target_len` in tokens, `tiny`.
  """
  a = config.parse_arg(arg, size="17b", res=224, text_len=128, target_len=64)
  c = common.base(name="pali")
  image, text = names.lookup("size", a.size, _SIZES)
  image = dict(kind="vit", **image)
  decoder = dict(kind="encdec", variant=text)
  if a.tiny:
    image |= dict(variant="mu/8", width=32, depth=2, hidden=64, heads=2)
    decoder |= dict(vocab=384, width=48, depth=2, hidden=64, heads=2, head_dim=16)
    a.res, a.text_len, a.target_len = 16, 16, 8
  c.model = dict(
    kind="vlm",
    encoders=dict(image=image),
    connector=dict(kind="linear", zero_init=False),
    fusion=dict(kind="scatter"),
    decoder=decoder,
  )
  c.processor = dict(
    kind="seq2seq",
    image=dict(size=a.res, method="bilinear", antialias=True),
    tokenizer=dict(kind="sentencepiece", path=""),
    text_len=a.text_len,
    target_len=a.target_len,
  )
  return c
