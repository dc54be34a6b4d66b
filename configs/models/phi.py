"""Phi 1, 1.5 and 2 as text models (arXiv 2306.11644, 2309.05463): `phi:2`."""

from bigvlm.configs.models import _parts, _texts

SIZES = {
  size: (f"microsoft/phi-{size.replace('.', '_')}", _parts.lm(d)) for size, d in _texts.PHI.items()
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("phi", arg, SIZES, default="2")
