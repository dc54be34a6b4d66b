"""Plain ViT encoders of big_vision: `vit:variant=B/16,res=224,pool=map`."""

from bigvlm import config
from bigvlm.configs import common

# Arguments of the published sizes.
SIZES = ("variant=S/16", "variant=B/16", "variant=L/16", "variant=H/14")


def get_config(arg=None):
  """Encoder alone, as a two-tower model without text has no use; see `bigvlm info`.

  Args:
    arg: `variant`, `res` in pixels, `pool`, `posemb`, `out_dim` (classes), `rep_size`, `tiny`.
  """
  a = config.parse_arg(
    arg, variant="B/16", res=224, pool="none", posemb="learn", out_dim=0, rep_size=0
  )
  c = common.base(name="vit")
  image = dict(kind="vit", variant=a.variant)
  if a.tiny:
    image = dict(kind="vit", width=32, depth=2, hidden=64, heads=2, patch=8)
    a.res = 16
  image |= dict(pool=a.pool, posemb=a.posemb, out_dim=a.out_dim, rep_size=a.rep_size)
  c.model = dict(kind="encoder", encoders=dict(image=image))
  c.processor = dict(
    kind="contrastive",
    image=dict(size=a.res, method="bilinear", antialias=True),
    tokenizer=dict(kind="sentencepiece", path=""),
    text_len=1,
  )
  return c
