"""Tiny models of the reference that put media into their text, beside processors of its own.

Needs what `processors_fusion` needs. `MODELS` as in `human_reference`: what people get from a
directory, and what the reference makes of the same prompts one by one.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.parity import (
  common,
  processors_check,
  processors_fusion,
  processors_reference,
  reference,
)

_SIDE = 20


class Case(NamedTuple):
  """A model and its prompts.

  Attributes:
    config: (processor, tokenizer) -> config of the model. model: its class.
    images: of every prompt, by name; those of `processors_fusion.videos` are videos.
    prompts: with the marks of their media.
    settings: of the reference's processor.
    make: keywords of the processor's function. type: of the tensors that processor can make.
  """

  config: Callable[[Any, Any], Any]
  model: str
  images: tuple[tuple[str, ...], ...]
  prompts: tuple[str, ...]
  settings: dict[str, Any] = {}
  make: dict[str, Any] = {}
  type: str = "np"


def _text(tokenizer: Any, kind: str = "llama", **more: Any) -> dict[str, Any]:
  rng = np.random.default_rng(7)
  ends = [2, *(int(n) for n in rng.choice(np.arange(20, len(tokenizer) - 60), 30, replace=False))]
  return dict(
    model_type=kind, vocab_size=len(tokenizer) + 3, hidden_size=40, intermediate_size=48,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, eos_token_id=ends,
    bos_token_id=1, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=512,
  ) | more  # fmt: skip


def _vision(kind: str | None = None, patch: int = 5, **more: Any) -> dict[str, Any]:
  sizes = dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
    image_size=_SIDE, patch_size=patch,
  )  # fmt: skip
  return sizes | (dict(model_type=kind) if kind else {}) | more


def _ids(tokenizer: Any) -> dict[str, Any]:
  return dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=_text(tokenizer)["eos_token_id"])


def _llava(
  cls: str, vision: str = "clip_vision_model", text: str = "llama", patch: int = 5, **more
):
  def config(processor: Any, tokenizer: Any) -> Any:
    import transformers

    given = dict(
      vision_config=_vision(vision, patch),
      text_config=_text(tokenizer, text),
      image_token_index=processor.image_token_id,
      **_ids(tokenizer),
    )
    if getattr(processor, "video_token_id", None) is not None:
      given["video_token_index"] = processor.video_token_id
    if hasattr(processor.image_processor, "image_grid_pinpoints"):
      given["image_grid_pinpoints"] = processor.image_processor.image_grid_pinpoints
    if cls == "LlavaOnevision":
      del given["image_token_index"], given["video_token_index"]
      given |= dict(image_token_id=processor.image_token_id)
      given |= dict(video_token_id=processor.video_token_id)
    return getattr(transformers, f"{cls}Config")(**given | more)

  return config


def _video_llava(processor: Any, tokenizer: Any) -> Any:
  import transformers

  return transformers.VideoLlavaConfig(
    vision_config=_vision("clip_vision_model"),
    text_config=_text(tokenizer),
    image_token_index=processor.image_token_id,
    video_token_index=processor.video_token_id,
    image_seq_length=16,
    video_seq_length=68,
    **_ids(tokenizer),
  )


def _internvl(processor: Any, tokenizer: Any) -> Any:
  import transformers

  return transformers.InternVLConfig(
    vision_config=_vision(),
    text_config=_text(tokenizer, "qwen2"),
    image_token_id=processor.image_token_id,
    image_seq_length=4,
    **_ids(tokenizer),
  )


def _idefics3(cls: str) -> Callable[[Any, Any], Any]:
  def config(processor: Any, tokenizer: Any) -> Any:
    import transformers

    return getattr(transformers, f"{cls}Config")(
      vision_config=_vision(),
      text_config=_text(tokenizer),
      image_token_id=processor.image_token_id,
      scale_factor=2,
      **_ids(tokenizer),
    )

  return config


def _idefics2(processor: Any, tokenizer: Any) -> Any:
  import transformers

  perceiver = dict(
    hidden_size=40, resampler_n_latents=3, resampler_depth=1, resampler_n_heads=4,
    resampler_head_dim=10, num_key_value_heads=2,
  )  # fmt: skip
  return transformers.Idefics2Config(
    vision_config=_vision(image_size=40),
    text_config=_text(tokenizer, "mistral"),
    perceiver_config=perceiver,
    image_token_id=processor.image_token_id,
    **_ids(tokenizer),
  )


def _idefics(processor: Any, tokenizer: Any) -> Any:
  import transformers

  vision = dict(
    embed_dim=32, image_size=_SIDE, intermediate_size=40, patch_size=5, num_hidden_layers=2,
    num_attention_heads=2,
  )  # fmt: skip
  perceiver = dict(
    use_resampler=True, resampler_n_latents=4, resampler_depth=1, resampler_n_heads=4,
    resampler_head_dim=10,
  )  # fmt: skip
  text = _text(tokenizer)
  keep = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
  return transformers.IdeficsConfig(
    vision_config=vision,
    perceiver_config=perceiver,
    vocab_size=len(tokenizer),
    additional_vocab_size=0,
    cross_layer_interval=1,
    use_resampler=True,
    bos_token_id=1,
    **{k: text[k] for k in keep},
    **_ids(tokenizer),
  )


def _mllama(processor: Any, tokenizer: Any) -> Any:
  import transformers

  vision = dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_global_layers=1,
    attention_heads=2, image_size=_SIDE, patch_size=5, vision_output_dim=64, max_num_tiles=4,
    intermediate_layers_indices=[0],
    supported_aspect_ratios=[[a, b] for a in range(1, 5) for b in range(1, 4 // a + 1)],
  )  # fmt: skip
  text = _text(tokenizer, "mllama_text_model", num_hidden_layers=3, cross_attention_layers=[1])
  text["rope_parameters"] = dict(rope_type="default", rope_theta=10_000.0)
  text["vocab_size"] = len(tokenizer)
  return transformers.MllamaConfig(
    vision_config=vision, text_config=text, image_token_index=processor.image_token_id
  )


def _pixtral(processor: Any, tokenizer: Any) -> Any:
  import transformers

  vision = dict(
    model_type="pixtral", hidden_size=32, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=2, head_dim=16, image_size=40, patch_size=4,
  )  # fmt: skip
  return transformers.LlavaConfig(
    vision_config=vision,
    text_config=_text(tokenizer, "mistral"),
    image_token_index=processor.image_token_id,
    vision_feature_select_strategy="full",
    vision_feature_layer=-1,
    **_ids(tokenizer),
  )


def _qwen(cls: str) -> Callable[[Any, Any], Any]:
  def config(processor: Any, tokenizer: Any) -> Any:
    import transformers

    rope = dict(rope_type="default", rope_theta=10_000.0, mrope_section=[1, 2, 2])
    text = _text(tokenizer, "qwen2_vl_text", rope_parameters=rope)
    vision = dict(depth=2, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
    if cls == "Qwen2_5_VL":
      vision |= dict(
        hidden_size=32, intermediate_size=40, out_hidden_size=40, window_size=16,
        fullatt_block_indexes=[1], tokens_per_second=2,
      )  # fmt: skip
      text["model_type"] = "qwen2_5_vl_text"
    else:
      vision |= dict(embed_dim=32, hidden_size=40, mlp_ratio=2)
    starts = ("<|vision_start|>", "<|vision_end|>")
    first, last = (tokenizer.convert_tokens_to_ids(t) for t in starts)
    return getattr(transformers, f"{cls}Config")(
      vision_config=vision,
      text_config=text,
      image_token_id=processor.image_token_id,
      video_token_id=processor.video_token_id,
      vision_start_token_id=first,
      vision_end_token_id=last,
      **_ids(tokenizer),
    )

  return config


def _video_llama_3(processor: Any, tokenizer: Any) -> Any:
  import transformers

  vision = dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, patch_size=4
  )
  return transformers.VideoLlama3Config(
    vision_config=vision,
    text_config=_text(tokenizer, "qwen2"),
    image_token_id=processor.image_token_id,
    video_token_id=processor.video_token_id,
    **_ids(tokenizer),
  )


def _blip2(cls: str) -> Callable[[Any, Any], Any]:
  def config(processor: Any, tokenizer: Any) -> Any:
    import transformers

    qformer = dict(
      vocab_size=200, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
      intermediate_size=28, cross_attention_frequency=2,
    )  # fmt: skip
    text = _text(tokenizer)
    if cls == "Blip2":
      text = dict(
        model_type="opt", vocab_size=len(tokenizer) + 2, hidden_size=32, word_embed_proj_dim=32,
        ffn_dim=40, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
        eos_token_id=text["eos_token_id"], pad_token_id=tokenizer.pad_token_id, bos_token_id=1,
      )  # fmt: skip
    mark = str(processor.video_token if "Video" in cls else processor.image_token)
    name = "video_token_index" if "Video" in cls else "image_token_index"
    return getattr(transformers, f"{cls}Config")(
      vision_config=_vision(),
      qformer_config=qformer,
      text_config=text,
      num_query_tokens=3,
      **{name: tokenizer.convert_tokens_to_ids(mark)},
    )

  return config


def _deepseek(processor: Any, tokenizer: Any) -> Any:
  import transformers

  return transformers.DeepseekVLConfig(
    vision_config=_vision("siglip_vision_model", 10),
    text_config=_text(tokenizer),
    image_token_id=processor.image_token_id,
    **_ids(tokenizer),
  )


def _fuyu(processor: Any, tokenizer: Any) -> Any:
  import transformers

  text = _text(tokenizer, "persimmon", hidden_size=32)
  del text["num_key_value_heads"]
  return transformers.FuyuConfig(
    text_config=text,
    patch_size=10,
    image_token_id=processor.image_token_id,
    **_ids(tokenizer),
  )


_ONE = (("wide",), ("rgb",))
_TWO = (("wide", "tall"), ("rgb",))
_AFTER = "VLForConditionalGeneration"
CASES: dict[str, Case] = {
  "blip2": Case(
    _blip2("Blip2"), "Blip2ForConditionalGeneration", _ONE, ("a photo of", "what is it?"),
  ),
  "instructblip": Case(
    _blip2("InstructBlip"), "InstructBlipForConditionalGeneration", _ONE,
    ("a photo of", "what is it?"),
  ),
  "instructblipvideo": Case(
    _blip2("InstructBlipVideo"), "InstructBlipVideoForConditionalGeneration",
    (("short",), ("short",)), ("a photo of", "what is it?"),
  ),
  "deepseek_vl": Case(
    _deepseek, "Deepseek" + _AFTER, _TWO,
    ("a <image_placeholder> or <image_placeholder>?", "<image_placeholder> is it?"),
  ),
  "fuyu": Case(_fuyu, "FuyuForCausalLM", _ONE, ("a photo of", "what is it?"), type="pt"),
  "idefics": Case(
    _idefics, "IdeficsForVisionText2Text", (("wide",), ("rgb",)), ("a photo of", "what is it?"),
    type="pt",
  ),
  "idefics2": Case(
    _idefics2, "Idefics2ForConditionalGeneration", _TWO, ("<image> or<image>?", "a<image> is it?"),
  ),
  "idefics3": Case(
    _idefics3("Idefics3"), "Idefics3ForConditionalGeneration", _TWO,
    ("<image> or<image>?", "a<image> is it?"),
  ),
  "smolvlm": Case(
    _idefics3("SmolVLM"), "SmolVLMForConditionalGeneration", _TWO,
    ("<image> or<image>?", "a<image> is it?"),
  ),
  "internvl": Case(
    _internvl, "Intern" + _AFTER, (("wide", "tall"), ("short",)),
    ("<IMG_CONTEXT> or <IMG_CONTEXT>?", "a <video> is it?"), type="pt",
  ),
  "llava": Case(
    _llava("Llava"), "LlavaForConditionalGeneration", _TWO, ("<image> or <image>?", "a <image>"),
    make=dict(width=20),
  ),
  "llava_next": Case(
    _llava("LlavaNext"), "LlavaNextForConditionalGeneration", _TWO,
    ("<image> or <image>?", "a <image>"),
  ),
  "llava_next_video": Case(
    _llava("LlavaNextVideo"), "LlavaNextVideoForConditionalGeneration", (("wide",), ("short",)),
    ("<image> or?", "a <video>"),
  ),
  "llava_onevision": Case(
    _llava(
      "LlavaOnevision", "siglip_vision_model", "qwen2", 4, vision_aspect_ratio="anyres_max_2",
      vision_feature_layer=-1,
    ),
    "LlavaOnevisionForConditionalGeneration", (("wide", "tall"), ("rgb",), ("short",)),
    ("<image> or <image>?", "a <image>", "<video> b"),
  ),
  "mllama": Case(
    _mllama, "MllamaForConditionalGeneration", _TWO,
    ("<|image|> or <|image|>?", "<|image|>a"), dict(add_special_tokens=False),
  ),
  "pixtral": Case(
    _pixtral, "LlavaForConditionalGeneration", _TWO, ("[IMG] or [IMG]?", "a [IMG]"),
  ),
  "qwen2_vl": Case(
    _qwen("Qwen2VL"), "Qwen2" + _AFTER, (("wide", "tall"), ("short",)),
    ("<|vision_start|><|image_pad|><|vision_end|> or <|vision_start|><|image_pad|><|vision_end|>?",
     "a <|vision_start|><|video_pad|><|vision_end|>"),
  ),
  "qwen2_5_vl": Case(
    _qwen("Qwen2_5_VL"), "Qwen2_5_" + _AFTER, (("wide", "tall"), ("short",)),
    ("<|vision_start|><|image_pad|><|vision_end|> or <|vision_start|><|image_pad|><|vision_end|>?",
     "a <|vision_start|><|video_pad|><|vision_end|>"),
  ),
  "video_llama_3": Case(
    _video_llama_3, "VideoLlama3ForConditionalGeneration", (("wide", "tall"), ("still",)),
    ("<|image_pad|> or <|image_pad|>?", "a <|video_pad|>"), type="pt",
  ),
  "video_llava": Case(
    _video_llava, "VideoLlavaForConditionalGeneration", (("wide",), ("short",)),
    ("<image> or?", "a <video>"),
  ),
}  # fmt: skip


def _model(name: str) -> Callable[[int, pathlib.Path], dict[str, Any]]:
  case = CASES[name]

  def make(seed: int, folder: pathlib.Path) -> dict[str, Any]:
    import torch
    import transformers

    processor, _ = processors_fusion.MAKERS[name](seed // 2 * 2, folder, **case.make)
    tokenizer = processor.tokenizer
    config = case.config(processor, tokenizer)
    config._attn_implementation = "eager"
    model = common.randomise(getattr(transformers, case.model)(config), seed, scale=0.6)
    with torch.no_grad():
      model.get_input_embeddings().weight *= 0.2
    model.generation_config.eos_token_id = config.get_text_config().eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    pictures, films = processors_reference.pictures(seed), processors_fusion.videos(seed)
    answers = []
    for names, prompt in zip(case.images, case.prompts, strict=True):
      images = [pictures[n] for n in names if n in pictures]
      videos = [films[n] for n in names if n in films and n not in pictures]
      given: dict[str, Any] = dict(text=[prompt], return_tensors=case.type, **case.settings)
      if images:
        given["images"] = (
          images if name in ("fuyu", "idefics", "blip2", "instructblip") else [images]
        )
      if videos:
        given["images" if name == "instructblipvideo" else "videos"] = videos
      inputs = {k: np.asarray(v) for k, v in processor(**given).items() if v is not None}
      ids = reference.generate(model, inputs, processors_check.NEW)[0]
      ends = np.flatnonzero(np.isin(ids, model.generation_config.eos_token_id))
      words = ids[: ends[0]] if len(ends) else ids  # An end may be a word of the tokenizer.
      answers.append(tokenizer.decode(words, skip_special_tokens=True))
    return {"generate": (([list(n) for n in case.images], list(case.prompts)), answers)}

  return make


MODELS = {name: _model(name) for name in CASES}
