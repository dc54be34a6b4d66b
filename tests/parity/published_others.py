"""`config.json` of published vision-language models: cross-attention, packed patches and more."""

from typing import Any

from tests.parity.published_projected import conditional, pixtral, qwen2, so400m
from tests.parity.sizes_texts import LLAMA, MISTRAL, QWEN2, text

_IDEFICS = dict(
  architectures=["IdeficsForVisionText2Text"],
  additional_vocab_size=2,
  cross_layer_interval=4,
  qk_layer_norms=True,
  use_resampler=True,
  vision_config=dict(embed_dim=1280, layer_norm_eps=1e-5),
  perceiver_config=dict(use_resampler=True, qk_layer_norms_perceiver=True),
)
IDEFICS = {
  "9b": _IDEFICS | text(4096, 11_008, 32, 32),
  "80b": _IDEFICS | text(8192, 22_016, 80, 64),
}
IDEFICS = {
  size: {k: v for k, v in c.items() if k != "num_key_value_heads"} for size, c in IDEFICS.items()
}


def _mllama(fields: dict[str, Any]) -> dict[str, Any]:
  depth = fields["num_hidden_layers"]
  layers = list(range(3, depth, 5))
  text = fields | _MLLAMA | dict(cross_attention_layers=layers)
  vision = dict(model_type="mllama_vision_model", image_size=560, max_num_tiles=4)
  return conditional(
    "Mllama", image_token_index=128_256, text_config=text, vision_config=vision | _TILES
  )


_TILES = dict(
  vision_output_dim=7680,
  intermediate_layers_indices=[3, 7, 15, 23, 30],
  supported_aspect_ratios=[[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
)
_MLLAMA = dict(model_type="mllama_text_model", tie_word_embeddings=False)
MLLAMA = {
  "11b": _mllama(LLAMA["3.1_8b"] | dict(num_hidden_layers=40)),
  "90b": _mllama(LLAMA["3.1_70b"] | dict(num_hidden_layers=100)),
}

_MROPE = dict(rope_scaling=dict(type="mrope", mrope_section=[16, 24, 24]))
_IDS = dict(image_token_id=151_655, video_token_id=151_656)


def _qwen_vl(cls: str, text: dict[str, Any], vision: dict[str, Any], kind: str) -> dict[str, Any]:
  return conditional(
    cls,
    **_IDS,
    text_config=text | _MROPE | dict(model_type=f"{kind}_text", max_position_embeddings=32_768),
    vision_config=vision | dict(model_type=kind),
    tie_word_embeddings=text.get("tie_word_embeddings", False),
  )


QWEN2_VL = {
  size: _qwen_vl(
    "Qwen2VL",
    qwen2(of, rms_norm_eps=1e-6),
    dict(depth=32, embed_dim=1280, num_heads=16, mlp_ratio=4, hidden_size=QWEN2[of]["hidden_size"]),
    "qwen2_vl",
  )
  for size, of in (("2b", "1.5b"), ("7b", "7b"), ("72b", "72b"))
}
QWEN2_5_VL = {
  size: _qwen_vl(
    "Qwen2_5_VL",
    qwen2(f"2.5_{size}", rms_norm_eps=1e-6),
    dict(
      depth=32,
      hidden_size=1280,
      intermediate_size=hidden,
      num_heads=16,
      out_hidden_size=QWEN2[f"2.5_{size}"]["hidden_size"],
      window_size=112,
      fullatt_block_indexes=[7, 15, 23, 31],
    ),
    "qwen2_5_vl",
  )
  for size, hidden in (("3b", 3420), ("7b", 3420), ("32b", 3456), ("72b", 3456))
}
VIDEO_LLAMA_3 = {
  size: conditional(
    "VideoLlama3",
    **_IDS,
    text_config=qwen2(of),
    vision_config={
      k: v for k, v in so400m(0, model_type="video_llama_3_vision").items() if k != "image_size"
    },
    tie_word_embeddings=size == "2b",
  )
  for size, of in (("2b", "2.5_1.5b"), ("7b", "2.5_7b"))
}
MISTRAL3 = {
  "small_3.1_24b": conditional(
    "Mistral3",
    image_token_index=10,
    text_config=MISTRAL["small_24b"]
    | dict(model_type="mistral", rope_theta=1e9, max_position_embeddings=131_072),
    vision_config=pixtral(1540),
    vision_feature_layer=-1,
    spatial_merge_size=2,
    tie_word_embeddings=False,
  )
}

_L_384 = so400m(384, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24)
_L_384 |= dict(patch_size=16, hidden_act="gelu", vision_use_head=False)
_DEEPSEEK = dict(model_type="llama", vocab_size=102_400, max_position_embeddings=16_384)
DEEPSEEK_VL = {
  "1.3b": conditional(
    "DeepseekVL",
    text_config=text(2048, 5632, 24, 16, **_DEEPSEEK),
    vision_config=_L_384,
    tie_word_embeddings=False,
  ),
  "7b": conditional(
    "DeepseekVLHybrid",
    text_config=text(4096, 11_008, 30, 32, **_DEEPSEEK),
    vision_config=_L_384,
    high_res_vision_config=dict(model_type="sam_vision_model"),
    tie_word_embeddings=False,
  ),
}
FUYU = {"8b": dict(architectures=["FuyuForCausalLM"])}
