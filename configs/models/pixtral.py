"""Pixtral 12B (arXiv 2410.07073): packed patches with two rotary axes, `pixtral:12b`."""

from bigvlm.configs.models import _parts, _texts

_DECODER = _texts.MISTRAL["nemo_12b"] | dict(rope_base=1e9)
_MODEL = _parts.vlm(_parts.PIXTRAL, dict(kind="merger"), _DECODER)
SIZES = {"12b": ("mistral-community/pixtral-12b", _MODEL)}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("pixtral", arg, SIZES, default="12b", res=1024)
