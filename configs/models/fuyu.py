"""Fuyu-8B (adept.ai, 2023): patches straight into the decoder, `fuyu:8b`."""

from bigvlm.configs.models import _parts, _texts

_MODEL = _parts.vlm(
  dict(kind="raw", patch=30),
  dict(kind="linear", packed=True, zero_init=False),
  _texts.PERSIMMON["8b"],
)
SIZES = {"8b": ("adept/fuyu-8b", _MODEL)}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("fuyu", arg, SIZES, default="8b", res=300)
