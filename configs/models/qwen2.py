"""Qwen2 and Qwen2.5 as text models (arXiv 2407.10671, 2412.15115): `qwen2:2.5_7b`."""

from bigvlm.configs.models import _parts, _texts


def _hub_id(size):
  version, _, count = size.rpartition("_")
  return f"Qwen/Qwen{version or 2}-{count.upper()}"


SIZES = {size: (_hub_id(size), _parts.lm(d)) for size, d in _texts.QWEN2.items()}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("qwen2", arg, SIZES, default="7b")
