"""Qwen2-VL (arXiv 2409.12191): native resolution, three rotary axes, `qwen2_vl:7b`."""

from bigvlm.configs.models import _parts, _texts

IMAGE = dict(
  kind="packed",
  width=1280,
  depth=32,
  hidden=5120,
  heads=16,
  patch=14,
  frames=2,
  block=2,
  act="quick_gelu",
  **_parts.OPENAI,
)
AXES = dict(rotary=dict(sections=(16, 24, 24)), eps=1e-6)
_CONNECTOR = dict(kind="merger", merge=2, norm="layer", hidden=4 * 1280)
SIZES = {
  size: (
    f"Qwen/Qwen2-VL-{size.upper()}-Instruct",
    _parts.vlm(IMAGE, _CONNECTOR, _texts.QWEN2[text] | AXES),
  )
  for size, text in (("2b", "1.5b"), ("7b", "7b"), ("72b", "72b"))
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("qwen2_vl", arg, SIZES, default="7b", res=448)
