"""LLaVA-OneVision (arXiv 2408.03326): tiles, videos, `llava_onevision:qwen2_7b`."""

from bigvlm.configs.models import _parts, _texts

_CONNECTOR = dict(kind="tiles", most=9, frames="bilinear", video_newline=True)
SIZES = {
  f"qwen2_{size}": (
    f"llava-hf/llava-onevision-qwen2-{size}-ov-hf",
    _parts.vlm(_parts.SO400M_26, _CONNECTOR, _texts.QWEN2[size] | dict(vocab=vocab)),
  )
  for size, vocab in (("0.5b", 152_000), ("7b", 152_128), ("72b", 152_128))
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("llava_onevision", arg, SIZES, default="qwen2_7b", res=384)
