"""The mask codec of the quickstart: PaliGemma's VQ-VAE, trained on the masks of digits."""

from bigvlm import config
from bigvlm.configs import common
from bigvlm.utils import jaxcache


def get_config(arg=None):
  """A codec of 64x64 masks; `tiny` makes a few steps, enough to have a file.

  Args:
    arg: `steps`, `tiny`.
  """
  a = config.parse_arg(arg, steps=160)
  c = common.base(name="mask_codec")
  c.model = dict(kind="mask_codec")
  c.processor = dict(kind="mask", image=dict(size=64))
  c.log.every = 1 if a.tiny else 25
  c.log.tensorboard = False
  if a.tiny:
    c.compiler_options = dict(jaxcache.QUICK)
  c.checkpoint.keep = 1
  c.stages = (
    common.stage(
      name="codec",
      data=dict(sources=(dict(kind="digit_masks", split="train"),)),
      batch_size=8 if a.tiny else 32,
      steps=2 if a.tiny else a.steps,
      lr=1e-3,
      schedule=dict(kind="cosine", warmup=0.08, end=0.02),
      optimizer=dict(kind="adam", b2=0.99),
      grad_clip=0.0,
      objective=dict(kind="mask_vq"),
    ),
  )
  return c
