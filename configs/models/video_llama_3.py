"""VideoLLaMA 3 (arXiv 2501.13106): native resolution, `video_llama_3:7b`."""

from bigvlm.configs.models import _parts, _texts

_IMAGE = dict(
  kind="packed",
  width=1152,
  depth=27,
  hidden=4304,
  heads=16,
  patch=14,
  patch_bias=True,
  final_norm="tokens",
  merges=4,
)
SIZES = {
  size: (
    f"lkhl/VideoLLaMA3-{size.upper()}-Image-HF",
    _parts.vlm(_IMAGE, dict(kind="merger"), _texts.QWEN2[text]),
  )
  for size, text in (("2b", "2.5_1.5b"), ("7b", "2.5_7b"))
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("video_llama_3", arg, SIZES, default="7b", res=448)
