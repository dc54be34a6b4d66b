"""Tiny models of the reference beside processors of its own, and what it answers to people.

Needs torch and transformers. `MODELS` maps a name to a function (seed, folder) that fills the
folder and gives {call of bigvlm: (arguments, what the reference gives)}; images by their names in
`processors_reference.pictures(seed)`.
"""

import pathlib
from typing import Any

import numpy as np

from tests.parity import common, processors_check, processors_reference, reference

_SIDE = {"height": 18, "width": 18}


def _vision(cls: str, **more: Any) -> dict[str, Any]:
  return dict(
    model_type=cls, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=2, image_size=18, patch_size=6,
  ) | more  # fmt: skip


def _decoder(vocab: int, **more: Any) -> dict[str, Any]:
  return dict(
    vocab_size=vocab, hidden_size=40, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=12, eos_token_id=1, bos_token_id=2,
    pad_token_id=0, max_position_embeddings=512,
  ) | more  # fmt: skip


def _saved(model: Any, folder: pathlib.Path, seed: int) -> Any:
  model = common.randomise(model, seed, scale=0.6)
  model.save_pretrained(folder)
  return model


def _answers(model: Any, processor: Any, given: dict[str, np.ndarray]) -> list[str]:
  given = {k: v for k, v in given.items() if k != "labels"}
  ids = reference.generate(model, given, processors_check.NEW)
  return [processor.decode(row, skip_special_tokens=True) for row in ids]


def _scores(model: Any, given: dict[str, np.ndarray], shift: int) -> np.ndarray:
  """log p of the labels, `shift` positions behind the logits."""
  import torch

  labels = np.asarray(given["labels"])
  out = reference.forward(model.double(), given, ("logits",))["logits"]
  model.float()
  logp = torch.log_softmax(torch.from_numpy(out), dim=-1).numpy()
  rows = []
  for row, one in enumerate(labels):
    at = np.flatnonzero(one != -100)
    rows.append(logp[row, at - shift, one[at]].sum())
  return np.array(rows)


def _each(processor: Any, count: int, **given: Any) -> list[dict[str, np.ndarray]]:
  """Inputs of every example alone, so that nothing is padded."""
  rows = []
  for n in range(count):
    one = {k: v[n : n + 1] for k, v in given.items()}
    out = processor(**one, return_tensors="np")
    rows.append({k: np.asarray(v) for k, v in out.items() if v is not None})
  return rows


def _appended(given: dict[str, np.ndarray], tokenizer: Any, answer: str) -> dict[str, np.ndarray]:
  """Inputs of one prompt with an answer and its end behind it, and labels for them."""
  more = np.array([[*tokenizer(answer, add_special_tokens=False)["input_ids"], 1]])
  out = dict(given)
  for key, value in dict(input_ids=more, attention_mask=1, token_type_ids=0).items():
    if key in given:
      tail = np.broadcast_to(value, more.shape)
      out[key] = np.concatenate([given[key], tail], axis=1).astype(np.int64)
  out["labels"] = out["input_ids"].copy()
  out["labels"][:, : -more.shape[1]] = -100
  return out


def paligemma(seed: int, folder: pathlib.Path) -> dict[str, Any]:
  import transformers

  processors_reference.paligemma(seed, folder)
  pixels = transformers.SiglipImageProcessorPil(size=_SIDE, do_convert_rgb=True)
  pixels.image_seq_length = 9
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  processor = transformers.PaliGemmaProcessor(pixels, tokenizer)
  path = folder / "preprocessor_config.json"
  pixels.save_pretrained(folder)
  content = processors_reference.json.loads(path.read_text()) | {"image_seq_length": 9}
  processors_reference.write(folder, path.name, content)
  config = transformers.PaliGemmaConfig(
    vision_config=_vision("siglip_vision_model", vision_use_head=False),
    text_config=_decoder(len(tokenizer) + 6, model_type="gemma"),
    projection_dim=40,
    image_token_index=processor.image_token_id,
    bos_token_id=2, eos_token_id=1, pad_token_id=0,
  )  # fmt: skip
  config._attn_implementation = "eager"
  model = _saved(transformers.PaliGemmaForConditionalGeneration(config), folder, seed)
  names = ["rgb", "wide", "rgba"]
  pictures = processors_check.filled(names, processors_reference.pictures(seed))
  prompts, texts = ["caption en", "detect cats ; the photo", "ocr"], ["the cats", "<loc0007>", ""]
  plain = _each(processor, 3, images=pictures, text=prompts)
  pairs = _each(processor, 3, images=pictures, text=prompts, suffix=texts)
  return {
    "generate": ((names, prompts), [_answers(model, processor, x)[0] for x in plain]),
    "score": ((names, prompts, texts), np.array([_scores(model, x, 1)[0] for x in pairs])),
  }


def gemma3(seed: int, folder: pathlib.Path) -> dict[str, Any]:
  import transformers

  processors_reference.gemma3_processor(seed, folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  pixels = transformers.Gemma3ImageProcessorPil(size=_SIDE)
  processor = transformers.Gemma3Processor(pixels, tokenizer, image_seq_length=9)
  processor.save_pretrained(folder)
  config = transformers.Gemma3Config(
    vision_config=_vision("siglip_vision_model", vision_use_head=False),
    text_config=_decoder(len(tokenizer) + 3, sliding_window=8, query_pre_attn_scalar=9),
    mm_tokens_per_image=9,
    image_token_index=tokenizer.image_token_id,
    boi_token_index=tokenizer.boi_token_id,
    eoi_token_index=tokenizer.eoi_token_id,
    eos_token_id=1, bos_token_id=2, pad_token_id=0,
  )  # fmt: skip
  config._attn_implementation = "eager"
  model = _saved(transformers.Gemma3ForConditionalGeneration(config), folder, seed)
  names = [["rgb"], ["wide", "tall"]]
  groups = processors_check.filled(names, processors_reference.pictures(seed))
  prompts = ["<start_of_image> what is this", "<start_of_image> or <start_of_image>"]
  plain = _each(processor, 2, images=groups, text=prompts)
  answers = ["the cats", "Park 12"]
  pairs = [_appended(x, tokenizer, a) for x, a in zip(plain, answers, strict=True)]
  return {
    "generate": ((names, prompts), [_answers(model, processor, x)[0] for x in plain]),
    "score": ((names, prompts, answers), np.array([_scores(model, x, 1)[0] for x in pairs])),
  }


def gemma2(seed: int, folder: pathlib.Path) -> dict[str, Any]:
  import transformers

  processors_reference.gemma(seed, folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  config = transformers.Gemma2Config(
    **_decoder(len(tokenizer), sliding_window=6, query_pre_attn_scalar=11)
  )
  config._attn_implementation = "eager"
  model = _saved(transformers.Gemma2ForCausalLM(config), folder, seed)
  prompts = ["the cats", "answer what is this the Park", "12"]
  answers = [" the Park", "cats cats the photo", ""]
  plain = _each(tokenizer, 3, text=prompts)
  pairs = [_appended(x, tokenizer, a) for x, a in zip(plain, answers, strict=True)]
  return {
    "generate": ((None, prompts), [_answers(model, tokenizer, x)[0] for x in plain]),
    "score": ((None, prompts, answers), np.array([_scores(model, x, 1)[0] for x in pairs])),
  }


def t5(seed: int, folder: pathlib.Path) -> dict[str, Any]:
  import transformers

  processors_reference.t5(seed, folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  config = transformers.T5Config(
    vocab_size=len(tokenizer) + 5, d_model=40, d_kv=12, d_ff=48, num_layers=2, num_heads=3,
    decoder_start_token_id=0,
  )  # fmt: skip
  model = _saved(transformers.T5ForConditionalGeneration(config), folder, seed)
  prompts, answers = ["the cats", "answer what is this the Park"], ["photo", "the cats 12 Park"]
  plain = _each(tokenizer, 2, text=prompts)
  labels = [np.array([tokenizer(text)["input_ids"]]) for text in answers]
  pairs = [x | {"labels": y} for x, y in zip(plain, labels, strict=True)]
  return {
    "generate": ((None, prompts), [_answers(model, tokenizer, x)[0] for x in plain]),
    "score": ((None, prompts, answers), np.array([_scores(model, x, 0)[0] for x in pairs])),
  }


def _dual(model: Any, processor: Any, seed: int, **settings: Any) -> dict[str, Any]:
  names = ["rgb", "grey", "clear"]
  pictures = processors_check.filled(names, processors_reference.pictures(seed))
  given = processor(images=pictures, text=_WORDS, return_tensors="np", **settings)
  given = {k: np.asarray(v) for k, v in given.items()}
  out = reference.forward(model, given, ("image_embeds", "text_embeds"))
  return {
    "embed_image": ((names,), out["image_embeds"]),
    "embed_text": ((_WORDS,), out["text_embeds"]),
  }


_WORDS = ["the cats", "A photo of two cats, sitting on a mat!", "12"]


def clip(seed: int, folder: pathlib.Path) -> dict[str, Any]:
  import transformers

  processors_reference.clip(seed, folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size=18)
  pixels.save_pretrained(folder)
  text = dict(
    vocab_size=len(tokenizer), hidden_size=40, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=77, eos_token_id=tokenizer.eos_token_id,
    bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
  )  # fmt: skip
  config = transformers.CLIPConfig(
    text_config=text, vision_config=_vision("clip_vision_model"), projection_dim=24
  )
  config._attn_implementation = "eager"
  model = _saved(transformers.CLIPModel(config), folder, seed)
  processor = transformers.CLIPProcessor(pixels, tokenizer)
  return _dual(model, processor, seed, padding=True)


def siglip(seed: int, folder: pathlib.Path) -> dict[str, Any]:
  import transformers

  processors_reference.siglip(seed, folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  pixels = transformers.SiglipImageProcessorPil(size=_SIDE)
  pixels.save_pretrained(folder)
  text = dict(
    vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=64,
  )  # fmt: skip
  config = transformers.SiglipConfig(text_config=text, vision_config=_vision("siglip_vision_model"))
  config._attn_implementation = "eager"
  model = _saved(transformers.SiglipModel(config), folder, seed)
  processor = transformers.SiglipProcessor(pixels, tokenizer)
  return _dual(model, processor, seed, padding="max_length")


def siglip2(seed: int, folder: pathlib.Path) -> dict[str, Any]:
  import transformers

  processors_reference.siglip2_text(seed, folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  pixels = transformers.Siglip2ImageProcessorPil(
    patch_size=6, max_num_patches=20, do_convert_rgb=True
  )
  processor = transformers.Siglip2Processor(pixels, tokenizer)
  processor.save_pretrained(folder)
  text = dict(
    vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=64,
  )  # fmt: skip
  vision = _vision("siglip2_vision_model", num_patches=16)
  vision.pop("image_size")
  config = transformers.Siglip2Config(text_config=text, vision_config=vision)
  config._attn_implementation = "eager"
  model = _saved(transformers.Siglip2Model(config), folder, seed)
  sizes = dict(patch_size=6, max_num_patches=20)
  return _dual(model, processor, seed, **sizes)


def _encoder(seed: int, folder: pathlib.Path, config: Any, cls: Any, pixels: Any) -> dict:
  config._attn_implementation = "eager"
  model = _saved(cls(config), folder, seed)
  pixels.save_pretrained(folder)
  names = ["rgb", "grey", "clear"]
  pictures = processors_check.filled(names, processors_reference.pictures(seed))
  given = pixels(pictures, return_tensors="np", do_convert_rgb=True)
  given = {"pixel_values": np.asarray(given["pixel_values"])}
  x = reference.forward(model, given, ("pooler_output",))["pooler_output"]
  return {"embed_image": ((names,), x / np.linalg.norm(x, axis=-1, keepdims=True))}


def dinov2(seed: int, folder: pathlib.Path) -> dict[str, Any]:
  import transformers

  config = transformers.Dinov2Config(**_vision("dinov2", mlp_ratio=2))
  pixels = transformers.BitImageProcessorPil(size={"shortest_edge": 20}, crop_size=18)
  return _encoder(seed, folder, config, transformers.Dinov2Model, pixels)


def vit(seed: int, folder: pathlib.Path) -> dict[str, Any]:
  import transformers

  config = transformers.ViTConfig(**_vision("vit"))
  pixels = transformers.ViTImageProcessorPil(size=_SIDE)
  return _encoder(seed, folder, config, transformers.ViTModel, pixels)


MODELS = {
  "paligemma": paligemma,
  "gemma3": gemma3,
  "gemma2": gemma2,
  "t5": t5,
  "clip": clip,
  "siglip": siglip,
  "siglip2": siglip2,
  "dinov2": dinov2,
  "vit": vit,
}
