"""LLaVA 1.5 and its like (arXiv 2310.03744): `llava:1.5_7b`.

BakLLaVA has Mistral for Vicuna; LLaVA-Interleave (2407.07895) SigLIP and Qwen2.
"""

from bigvlm.configs.models import _parts, _texts

_MLP = dict(kind="mlp")


def _qwen(size, vocab):
  decoder = _texts.QWEN2[size] | dict(vocab=vocab)
  return (
    f"llava-hf/llava-interleave-qwen-{size}-hf",
    _parts.vlm(_parts.SO400M_26, _MLP, decoder),
    384,
  )


SIZES = {
  "1.5_7b": ("llava-hf/llava-1.5-7b-hf", _parts.vlm(_parts.CLIP_L, _MLP, _texts.VICUNA["7b"])),
  "1.5_13b": ("llava-hf/llava-1.5-13b-hf", _parts.vlm(_parts.CLIP_L, _MLP, _texts.VICUNA["13b"])),
  "bakllava_7b": (
    "llava-hf/bakLlava-v1-hf",
    _parts.vlm(_parts.CLIP_L, _MLP, _texts.MISTRAL["7b_v0.1"] | dict(vocab=32_064)),
  ),
  "interleave_qwen_0.5b": _qwen("0.5b", 152_000),
  "interleave_qwen_7b": _qwen("7b", 152_128),
}
_HUB = {
  "": dict(image_token_index=32_000),
  **{f"interleave_qwen_{size}": dict(image_token_index=151_646) for size in ("0.5b", "7b")},
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("llava", arg, SIZES, default="1.5_7b", res=336, hub=_HUB)
