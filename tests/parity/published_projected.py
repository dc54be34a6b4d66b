"""`config.json` of published vision-language models: projectors, tiles, resamplers."""

from typing import Any

from tests.parity.sizes_texts import LLAMA, MISTRAL, QWEN2, opt, text


def _clip(size: int, **more: Any) -> dict[str, Any]:
  return dict(
    model_type="clip_vision_model",
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    patch_size=14,
    image_size=size,
    projection_dim=768,
    **more,
  )


def so400m(size: int, **more: Any) -> dict[str, Any]:
  """Config of SigLIP's So400m/14 at an image size."""
  return (
    dict(
      model_type="siglip_vision_model",
      hidden_size=1152,
      intermediate_size=4304,
      num_hidden_layers=27,
      num_attention_heads=16,
      patch_size=14,
      image_size=size,
    )
    | more
  )


def pixtral(size: int) -> dict[str, Any]:
  """Config of Pixtral's encoder."""
  return dict(
    model_type="pixtral",
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    head_dim=64,
    patch_size=16,
    image_size=size,
    rope_theta=10_000.0,
  )


def conditional(cls: str, **fields: Any) -> dict[str, Any]:
  """Config of a class for conditional generation."""
  return dict(architectures=[f"{cls}ForConditionalGeneration"], **fields)


# Vocabularies with rows for the placeholders, a multiple of 64.
_VICUNA = {
  size: LLAMA[f"2_{size}"] | dict(model_type="llama", vocab_size=32_064) for size in ("7b", "13b")
}
_MISTRAL = {
  v: MISTRAL[f"7b_{v}"] | dict(model_type="mistral", vocab_size=32_064) for v in ("v0.1", "v0.2")
}
_YI = text(
  7168, 20_480, 60, 56, 8, model_type="llama", vocab_size=64_064, rope_theta=5e6, rms_norm_eps=1e-5
)
_LLAMA3 = LLAMA["3_8b"] | dict(model_type="llama", vocab_size=128_320)


def qwen2(size: str, **more: Any) -> dict[str, Any]:
  """Config of a Qwen2 as a part."""
  return QWEN2[size] | dict(model_type="qwen2") | more


_CLIP_336 = _clip(336)


def _llava(text: dict, vision: dict = _CLIP_336, **more: Any) -> dict[str, Any]:
  return conditional(
    "Llava",
    **dict(
      image_token_index=32_000,
      text_config=text,
      vision_config=vision,
      vision_feature_layer=-2,
      vision_feature_select_strategy="default",
      tie_word_embeddings=False,
    )
    | more,
  )


_SIGLIP = so400m(384, num_hidden_layers=26, vision_use_head=False)
_FULL = dict(vision_feature_layer=-1, vision_feature_select_strategy="full")
LLAVA = {
  "1.5_7b": _llava(_VICUNA["7b"]),
  "1.5_13b": _llava(_VICUNA["13b"]),
  "bakllava_7b": _llava(_MISTRAL["v0.1"]),
  "interleave_qwen_0.5b": _llava(
    qwen2("0.5b", vocab_size=152_000),
    _SIGLIP,
    image_token_index=151_646,
    **_FULL | dict(tie_word_embeddings=True),
  ),
  "interleave_qwen_7b": _llava(
    qwen2("7b", vocab_size=152_128), _SIGLIP, image_token_index=151_646, **_FULL
  ),
}
PIXTRAL = {
  "12b": _llava(
    MISTRAL["nemo_12b"]
    | dict(model_type="mistral", rope_theta=1e9, max_position_embeddings=1_024_000),
    pixtral(1024),
    image_token_index=10,
    **_FULL,
  )
}
VIPLLAVA = {
  size: conditional(
    "VipLlava",
    image_token_index=32_000,
    text_config=_VICUNA[size],
    vision_config=_CLIP_336,
    vision_feature_layers=[-2, -5, -8, -11, 6],
    tie_word_embeddings=False,
  )
  for size in ("7b", "13b")
}
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _next(cls: str, text: dict, **more: Any) -> dict[str, Any]:
  fields = dict(image_token_index=32_000, image_grid_pinpoints=_PINPOINTS) | more
  return _llava(text, **fields) | conditional(cls)


LLAVA_NEXT = {
  "v1.6_mistral_7b": _next("LlavaNext", _MISTRAL["v0.2"]),
  "v1.6_vicuna_7b": _next("LlavaNext", _VICUNA["7b"]),
  "v1.6_vicuna_13b": _next("LlavaNext", _VICUNA["13b"]),
  "v1.6_34b": _next("LlavaNext", _YI, image_token_index=64_000),
  "llama3_8b": _next("LlavaNext", _LLAMA3, image_token_index=128_256),
}
_VIDEO = dict(image_token_index=32_001, video_token_index=32_000)
LLAVA_NEXT_VIDEO = {
  "7b": _next("LlavaNextVideo", _VICUNA["7b"], **_VIDEO),
  "7b_32k": _next("LlavaNextVideo", _MISTRAL["v0.2"], **_VIDEO),
  "34b": _next("LlavaNextVideo", _YI, image_token_index=64_001, video_token_index=64_000),
}
LLAVA_ONEVISION = {
  f"qwen2_{size}": _llava(
    qwen2(size, vocab_size=vocab),
    _SIGLIP,
    image_token_index=151_646,
    video_token_index=151_647,
    vision_aspect_ratio="anyres_max_9",
    image_grid_pinpoints=[[384 * y, 384 * x] for y in range(1, 7) for x in range(1, 7)],
    **_FULL | dict(tie_word_embeddings=size == "0.5b"),
  )
  | conditional("LlavaOnevision")
  for size, vocab in (("0.5b", 152_000), ("7b", 152_128), ("72b", 152_128))
}
VIDEO_LLAVA = {
  "7b": conditional(
    "VideoLlava",
    image_token_index=32_000,
    video_token_index=32_001,
    text_config=_VICUNA["7b"],
    vision_config=_clip(224),
    tie_word_embeddings=False,
  )
}

_INTERN_300M = dict(
  model_type="internvl_vision",
  hidden_size=1024,
  intermediate_size=4096,
  num_hidden_layers=24,
  num_attention_heads=16,
  attention_bias=True,
  image_size=[448, 448],
  patch_size=[14, 14],
  norm_type="layer_norm",
  use_qk_norm=False,
)
_INTERN_6B = _INTERN_300M | dict(
  hidden_size=3200,
  intermediate_size=12_800,
  num_hidden_layers=45,
  num_attention_heads=25,
  attention_bias=False,
  norm_type="rms_norm",
  use_qk_norm=True,
)
_INTERNLM = dict(model_type="llama", vocab_size=92_553, rope_theta=1e6, rms_norm_eps=1e-5)
_INTERNLM |= dict(max_position_embeddings=32_768)
_DYNAMIC = dict(rope_scaling=dict(rope_type="dynamic", factor=2.0))
INTERNVL = {
  f"2.5_{size}": conditional(
    "InternVL",
    image_token_id=92_546 if text["model_type"] == "llama" else 151_667,
    text_config=text,
    vision_config=vision,
    tie_word_embeddings=False,
  )
  for size, vision, text in (
    ("1b", _INTERN_300M, qwen2("0.5b", vocab_size=151_674, tie_word_embeddings=False)),
    ("2b", _INTERN_300M, text(2048, 8192, 24, 16, 8, **_INTERNLM | _DYNAMIC)),
    ("4b", _INTERN_300M, qwen2("2.5_3b", vocab_size=151_674, tie_word_embeddings=False)),
    ("8b", _INTERN_300M, text(4096, 14_336, 32, 32, 8, **_INTERNLM | _DYNAMIC)),
    ("26b", _INTERN_6B, text(6144, 16_384, 48, 48, 8, **_INTERNLM | _DYNAMIC)),
    ("38b", _INTERN_6B, qwen2("2.5_32b", vocab_size=151_674)),
    ("78b", _INTERN_6B, qwen2("2.5_72b", vocab_size=151_674)),
  )
}

IDEFICS2 = {
  "8b": conditional(
    "Idefics2",
    image_token_id=32_001,
    text_config=_MISTRAL["v0.1"] | dict(vocab_size=32_003),
    vision_config=so400m(980, model_type="idefics2_vision"),
    perceiver_config=dict(
      model_type="idefics2_perceiver",
      hidden_size=4096,
      resampler_n_latents=64,
      resampler_depth=3,
      resampler_n_heads=16,
      resampler_head_dim=96,
      num_key_value_heads=4,
    ),
    tie_word_embeddings=False,
  )
}
IDEFICS3 = {
  "8b_llama3": conditional(
    "Idefics3",
    image_token_id=128_257,
    scale_factor=2,
    text_config=LLAMA["3.1_8b"] | dict(model_type="llama", vocab_size=128_259),
    vision_config=so400m(364, model_type="idefics3_vision"),
    tie_word_embeddings=False,
  )
}
_B_512 = so400m(512, hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
_B_512 |= dict(num_attention_heads=12, patch_size=16)
_SMOLLM = dict(model_type="llama", rms_norm_eps=1e-5, max_position_embeddings=8192)
_SMOL = {
  "256m": (_B_512, text(576, 1536, 30, 9, 3, vocab_size=49_280, rope_theta=1e5, **_SMOLLM), 4),
  "500m": (_B_512, text(960, 2560, 32, 15, 5, vocab_size=49_280, rope_theta=1e5, **_SMOLLM), 4),
  "2.2b": (
    so400m(384),
    text(
      *(2048, 8192, 24, 32),
      vocab_size=49_155,
      rope_theta=273_768.0,
      **_SMOLLM | dict(max_position_embeddings=16_384),
    ),
    3,
  ),
}


def _smol(cls: str, kind: str, size: str, **more: Any) -> dict[str, Any]:
  vision, text, scale = _SMOL[size]
  return conditional(
    cls,
    image_token_id=49_153 if text["vocab_size"] == 49_155 else 49_190,
    scale_factor=scale,
    text_config=text | more,
    vision_config=vision | dict(model_type=kind),
    tie_word_embeddings=False,
  )


IDEFICS3 |= {f"smolvlm_{size}": _smol("Idefics3", "idefics3_vision", size) for size in _SMOL}
SMOLVLM = {
  f"2_{size}": _smol("SmolVLM", "smolvlm_vision", size, vocab_size=49_280) for size in _SMOL
}

_T5 = dict(model_type="t5", feed_forward_proj="gated-gelu", tie_word_embeddings=False)
_T5 |= dict(num_layers=24, d_kv=64, vocab_size=32_128)
_XL, _XXL = (
  _T5 | dict(d_model=w, d_ff=f, num_heads=h) for w, f, h in ((2048, 5120, 32), (4096, 10_240, 64))
)
_OPT = dict(model_type="opt", vocab_size=50_304)

BLIP2 = {
  size: conditional("Blip2", image_token_index=token, text_config=text)
  for size, token, text in (
    ("opt_2.7b", 50_265, opt(2560, 32, 32) | _OPT),
    ("opt_6.7b", 50_265, opt(4096, 32, 32) | _OPT),
    ("flan_t5_xl", 32_100, _XL),
    ("flan_t5_xxl", 32_100, _XXL),
  )
}
BLIP2["itm_vit_g"] = dict(
  architectures=["Blip2ForImageTextRetrieval"],
  image_text_hidden_size=256,
  image_token_index=50_265,
  qformer_config=dict(use_qformer_text_input=True, vocab_size=30_523),
)
_QFORMER = dict(qformer_config=dict(vocab_size=30_523))
# Of the first Llama; 32,000 pads, 32,001 is the placeholder.
_VICUNA_1 = {
  size: LLAMA[f"1_{size}"] | dict(model_type="llama", vocab_size=32_064) for size in ("7b", "13b")
}
INSTRUCTBLIP = {
  size: conditional("InstructBlip", image_token_index=token, text_config=text, **_QFORMER)
  for size, token, text in (
    ("vicuna_7b", 32_001, _VICUNA_1["7b"]),
    ("vicuna_13b", 32_001, _VICUNA_1["13b"]),
    ("flan_t5_xl", 32_100, _XL),
    ("flan_t5_xxl", 32_100, _XXL),
  )
}
INSTRUCTBLIPVIDEO = {
  size: fields
  | conditional("InstructBlipVideo")
  | dict(video_token_index=fields["image_token_index"])
  for size, fields in INSTRUCTBLIP.items()
}
