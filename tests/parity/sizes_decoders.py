"""Published Gemmas and PaliGemmas: what their `config.json` says of sizes, and how many parameters.

Tied embeddings count once. PaliGemma's tables have the rows that transformers pads them to.
"""

from typing import Any


def _text(width: int, depth: int, hidden: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
  return dict(
    hidden_size=width,
    num_hidden_layers=depth,
    intermediate_size=hidden,
    num_attention_heads=heads,
    num_key_value_heads=kv,
    **more,
  )


def _so400m(size: int) -> dict[str, Any]:
  return dict(
    model_type="siglip_vision_model",
    hidden_size=1152,
    num_hidden_layers=27,
    intermediate_size=4304,
    num_attention_heads=16,
    patch_size=14,
    image_size=size,
    vision_use_head=False,
  )


_GEMMA_2B = _text(2048, 18, 16_384, 8, 1)
_GEMMA2_2B = _text(2304, 26, 9216, 8, 4)
_GEMMA2_9B = _text(3584, 42, 14_336, 16, 8)
_GEMMA2_27B = _text(4608, 46, 36_864, 32, 16, head_dim=128, query_pre_attn_scalar=144)
_SCALED = dict(rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024)


def _lm(name: str, text: dict[str, Any]) -> dict[str, Any]:
  return dict(architectures=[f"{name}ForCausalLM"], **text)


def _paligemma(kind: str, size: int, text: dict[str, Any]) -> dict[str, Any]:
  return dict(
    architectures=["PaliGemmaForConditionalGeneration"],
    image_token_index=257_152,
    projection_dim=text["hidden_size"],
    text_config=dict(model_type=kind, vocab_size=257_216, **text),
    vision_config=_so400m(size),
  )


def _gemma3(text: dict[str, Any]) -> dict[str, Any]:
  return dict(
    architectures=["Gemma3ForConditionalGeneration"],
    mm_tokens_per_image=256,
    text_config=dict(model_type="gemma3_text", **_SCALED, **text),
    vision_config=_so400m(896),
  )


# name -> (config.json, number of parameters)
SIZES: dict[str, tuple[dict[str, Any], int]] = {
  "google/gemma-2b": (_lm("Gemma", _GEMMA_2B), 2_506_172_416),
  "google/gemma-7b": (_lm("Gemma", {}), 8_537_680_896),
  "google/gemma-2-2b": (_lm("Gemma2", _GEMMA2_2B), 2_614_341_888),
  "google/gemma-2-9b": (_lm("Gemma2", _GEMMA2_9B), 9_241_705_984),
  "google/gemma-2-27b": (_lm("Gemma2", _GEMMA2_27B), 27_227_128_320),
  "google/gemma-3-1b-pt": (
    _lm("Gemma3", _text(1152, 26, 6912, 4, 1, vocab_size=262_144, sliding_window=512)),
    999_885_952,
  ),
  "google/gemma-3-4b-pt": (
    _gemma3(dict(hidden_size=2560, intermediate_size=10_240, num_hidden_layers=34)),
    4_300_079_472,
  ),
  "google/gemma-3-12b-pt": (_gemma3(_text(3840, 48, 15_360, 16, 8)), 12_187_325_040),
  "google/gemma-3-27b-pt": (
    _gemma3(_text(5376, 62, 21_504, 32, 16, head_dim=128, query_pre_attn_scalar=168)),
    27_432_406_640,
  ),
  "google/paligemma-3b-pt-224": (_paligemma("gemma", 224, _GEMMA_2B), 2_923_466_480),
  "google/paligemma-3b-pt-448": (_paligemma("gemma", 448, _GEMMA_2B), 2_924_351_216),
  "google/paligemma-3b-pt-896": (_paligemma("gemma", 896, _GEMMA_2B), 2_927_890_160),
  "google/paligemma2-3b-pt-224": (_paligemma("gemma2", 224, _GEMMA2_2B), 3_032_242_416),
  "google/paligemma2-3b-pt-448": (_paligemma("gemma2", 448, _GEMMA2_2B), 3_033_127_152),
  "google/paligemma2-3b-pt-896": (_paligemma("gemma2", 896, _GEMMA2_2B), 3_036_666_096),
  "google/paligemma2-10b-pt-224": (_paligemma("gemma2", 224, _GEMMA2_9B), 9_662_638_832),
  "google/paligemma2-28b-pt-224": (_paligemma("gemma2", 224, _GEMMA2_27B), 27_650_487_024),
}
