"""OPT as a text model (arXiv 2205.01068): `opt:2.7b`."""

from bigvlm.configs.models import _parts, _texts

SIZES = {size: (f"facebook/opt-{size}", _parts.lm(d)) for size, d in _texts.OPT.items()}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("opt", arg, SIZES, default="2.7b")
