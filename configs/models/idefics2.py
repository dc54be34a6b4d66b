"""Idefics2 (arXiv 2405.02246): native resolution, a Perceiver, `idefics2:8b`."""

from bigvlm.configs.models import _parts, _texts

_CONNECTOR = dict(
  kind="resampler",
  latents=64,
  depth=3,
  heads=16,
  kv_heads=4,
  head_dim=96,
  hidden=16_384,
  norm="rms_plain",
  eps=1e-6,
  act="silu",
  gated=True,
  latents_std=0.0,
  proj=14_336,
)
_MODEL = _parts.vlm(
  _parts.SO400M | dict(kind="padded", table=(70, 70)),
  _CONNECTOR,
  _texts.MISTRAL["7b_v0.1"] | dict(vocab=32_003),
)
SIZES = {"8b": ("HuggingFaceM4/idefics2-8b", _MODEL)}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("idefics2", arg, SIZES, default="8b", res=980)
