"""ViP-LLaVA (arXiv 2312.00784): features of five layers of CLIP, `vipllava:7b`."""

from bigvlm.configs.models import _parts, _texts

_IMAGE = _parts.CLIP_L | dict(taps=(23, 20, 17, 14, 6))
SIZES = {
  size: (
    f"llava-hf/vip-llava-{size}-hf",
    _parts.vlm(_IMAGE, dict(kind="mlp", norm="layer"), _texts.VICUNA[size]),
  )
  for size in ("7b", "13b")
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("vipllava", arg, SIZES, default="7b", res=336)
