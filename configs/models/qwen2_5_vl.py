"""Qwen2.5-VL (arXiv 2502.13923): windows in the encoder, absolute time, `qwen2_5_vl:7b`."""

from bigvlm.configs.models import _parts, _texts, qwen2_vl

_IMAGE = qwen2_vl.IMAGE | dict(
  act="silu", norm="rms_plain", gated=True, windows=(8, 8, 8, 8, 8, 8, 8, 0)
)
_CONNECTOR = dict(kind="merger", merge=2, norm="rms_plain", hidden=4 * 1280)
SIZES = {
  size: (
    f"Qwen/Qwen2.5-VL-{size.upper()}-Instruct",
    _parts.vlm(
      _IMAGE | dict(hidden=hidden), _CONNECTOR, _texts.QWEN2[f"2.5_{size}"] | qwen2_vl.AXES
    ),
  )
  for size, hidden in (("3b", 3420), ("7b", 3420), ("32b", 3456), ("72b", 3456))
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("qwen2_5_vl", arg, SIZES, default="7b", res=448)
