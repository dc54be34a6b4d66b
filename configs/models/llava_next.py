"""LLaVA-NeXT, also called 1.6 (arXiv 2310.03744 and blog, 2024): `llava_next:v1.6_mistral_7b`."""

from bigvlm.configs.models import _parts, _texts

_DECODERS = {
  "v1.6_mistral_7b": _texts.MISTRAL["7b_v0.2"] | dict(vocab=32_064),
  "v1.6_vicuna_7b": _texts.VICUNA["7b"],
  "v1.6_vicuna_13b": _texts.VICUNA["13b"],
  "v1.6_34b": _texts.YI_34B,
  "llama3_8b": _texts.LLAMA["3_8b"] | dict(vocab=128_320),
}
_IDS = dict(llama3_8b="llava-hf/llama3-llava-next-8b-hf")
SIZES = {
  size: (
    _IDS.get(size, f"llava-hf/llava-{size.replace('_', '-')}-hf"),
    _parts.vlm(_parts.CLIP_L, dict(kind="tiles"), decoder),
  )
  for size, decoder in _DECODERS.items()
}
_HUB = {
  "": dict(image_token_index=32_000),
  "v1.6_34b": dict(image_token_index=64_000),
  "llama3_8b": dict(image_token_index=128_256),
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("llava_next", arg, SIZES, default="v1.6_mistral_7b", res=336, hub=_HUB)
