"""LLaVA-NeXT-Video (blog, 2024): frames pooled 2 x 2, `llava_next_video:7b`."""

from bigvlm.configs.models import _parts, _texts

_DECODERS = {
  "7b": _texts.VICUNA["7b"],
  "7b_32k": _texts.MISTRAL["7b_v0.2"] | dict(vocab=32_064),
  "34b": _texts.YI_34B,
}
SIZES = {
  size: (
    f"llava-hf/LLaVA-NeXT-Video-{size.upper().replace('_', '-')}-hf",
    _parts.vlm(_parts.CLIP_L, dict(kind="tiles", frames="average"), decoder),
  )
  for size, decoder in _DECODERS.items()
}
_HUB = {
  "": dict(image_token_index=32_001, video_token_index=32_000),
  "34b": dict(image_token_index=64_001, video_token_index=64_000),
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("llava_next_video", arg, SIZES, default="7b", res=336, hub=_HUB)
