"""What bigvlm is measured against: the same work by transformers, open_clip, timm and big_vision.

Every function imports what it needs; nothing here is needed to use bigvlm.
"""

import importlib
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks import contest, workloads

Step = Callable[[], Any]
# Two ways to train in bfloat16: products only (torch.autocast), or the weights themselves.
_MODES = dict(float32=("float32",), bfloat16=("autocast", "weights"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # Weights are random: nothing is to be fetched.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _transformers() -> Any:
  """transformers, also where torchvision's compiled library was built for another torch."""
  importlib.import_module("tests.parity.torchvision_ops")  # Before transformers.
  return importlib.import_module("transformers")


def fastest(make: Callable[[str], Step], dtype: str) -> tuple[Step, str]:
  """(step, mode) of the faster way to compute in `dtype`, the best of two steps deciding."""
  modes = _MODES[dtype]
  if len(modes) == 1:
    return make(modes[0]), modes[0]

  def seconds(mode):
    step = make(mode)
    step()
    taken = []
    for _ in range(2):
      start = time.perf_counter()
      step()
      taken.append(time.perf_counter() - start)
    return min(taken)

  mode = min(modes, key=seconds)
  return make(mode), mode


def train_step(who: str, kind: str, dtype: str, tiny: bool, mode: str = "") -> tuple[Step, dict]:
  """The train step of a peer: random weights and data, AdamW, gradients clipped at norm 1.

  Args:
    who: "transformers" or "open_clip". kind: "siglip" or "paligemma".
    dtype: "float32" or "bfloat16". mode: a way of `_MODES`; default: the faster one.
  """
  makers = {
    ("transformers", "siglip"): _siglip_transformers,
    ("transformers", "paligemma"): _paligemma_transformers,
    ("open_clip", "siglip"): _siglip_open_clip,
  }

  def make(mode):
    import torch

    torch.manual_seed(0)
    model, loss = makers[who, kind](tiny)
    return _torch_step(model, loss, mode)

  step, mode = (make(mode), mode) if mode else fastest(make, dtype)
  return step, dict(mode=mode, versions=contest.versions(who))


def _torch_step(model: Any, loss: Callable, mode: str) -> Step:
  import torch

  dtype = torch.bfloat16 if mode == "weights" else torch.float32
  model.to(dtype).train()
  kernels = [p for p in model.parameters() if p.ndim >= 2]
  others = [p for p in model.parameters() if p.ndim < 2]
  groups = [dict(params=kernels, weight_decay=1e-4), dict(params=others, weight_decay=0.0)]
  optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)

  def step():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
      value = loss(dtype)
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return value.item()

  return step


def _data(rows: int, size: int, vocab: int, length: int) -> tuple[Any, Any]:
  import torch

  return torch.randn(rows, 3, size, size), torch.randint(3, vocab, (rows, length))


def _siglip_transformers(tiny: bool) -> tuple[Any, Callable]:
  transformers = _transformers()
  sizes = (32, 64, 2, 2) if tiny else (768, 3072, 12, 12)
  names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
  shared = dict(zip(names, sizes, strict=True))
  vocab = 2048 if tiny else 32_000
  config = transformers.SiglipConfig(
    vision_config=dict(shared, image_size=28 if tiny else 224, patch_size=14 if tiny else 16),
    text_config=dict(
      shared,
      vocab_size=vocab,
      max_position_embeddings=workloads.TEXT_LEN,
      projection_size=sizes[0],
      bos_token_id=0,
      eos_token_id=1,
      pad_token_id=1,
    ),
  )
  model = transformers.SiglipModel(config)
  pixels, tokens = _data(workloads.BATCH["siglip"], 28 if tiny else 224, vocab, workloads.TEXT_LEN)

  def loss(dtype):
    return model(input_ids=tokens, pixel_values=pixels.to(dtype), return_loss=True).loss

  return model, loss


def _siglip_open_clip(tiny: bool) -> tuple[Any, Callable]:
  import open_clip
  from open_clip import loss as losses

  config = open_clip.get_model_config("ViT-B-16-SigLIP")
  config.pop("custom_text", None)
  if tiny:
    config["embed_dim"] = 64
    config["vision_cfg"].update(timm_model_name="test_vit", timm_pool="avg", image_size=32)
    config["text_cfg"].update(width=64, heads=2, layers=2, vocab_size=2048)
  model = open_clip.model.CustomTextCLIP(**{**config, "init_logit_bias": -10, "output_dict": False})
  objective = losses.SigLipLoss()
  text, size = config["text_cfg"], config["vision_cfg"]["image_size"]
  pixels, tokens = _data(
    workloads.BATCH["siglip"], size, text["vocab_size"], text["context_length"]
  )

  def loss(dtype):
    out = model(pixels.to(dtype), tokens)
    if isinstance(out, dict):
      out = (out["image_features"], out["text_features"], out["logit_scale"], out["logit_bias"])
    return objective(*out)

  return model, loss


def _paligemma_model(tiny: bool) -> Any:
  """The reduced PaliGemma of transformers with random weights."""
  transformers = _transformers()
  vocab = 2048 if tiny else 32_768
  vision = dict(
    model_type="siglip_vision_model",
    hidden_size=32 if tiny else 384,
    intermediate_size=64 if tiny else 1536,
    num_hidden_layers=2 if tiny else 6,
    num_attention_heads=2 if tiny else 6,
    image_size=28 if tiny else 224,
    patch_size=14,
    vision_use_head=False,
  )
  text = dict(
    model_type="gemma",
    vocab_size=vocab,
    hidden_size=32 if tiny else 512,
    intermediate_size=64 if tiny else 2048,
    num_hidden_layers=2 if tiny else 6,
    num_attention_heads=2 if tiny else 8,
    num_key_value_heads=1,
    head_dim=16 if tiny else 64,
  )
  images = (vision["image_size"] // vision["patch_size"]) ** 2
  text["num_image_tokens"] = images
  config = transformers.PaliGemmaConfig(
    vision_config=vision,
    text_config=text,
    image_token_index=vocab - 1,
    projection_dim=text["hidden_size"],
    hidden_size=text["hidden_size"],
  )
  return transformers.PaliGemmaForConditionalGeneration(config)


def _paligemma_data(config: Any, rows: int, length: int) -> tuple[Any, Any, int]:
  """Pixels, tokens with so many of text after those of the picture, and how many those are."""
  vision, images = config.vision_config, config.text_config.num_image_tokens
  pixels, tokens = _data(rows, vision.image_size, config.image_token_index, images + length)
  tokens[:, :images] = config.image_token_index
  return pixels, tokens, images


def _paligemma_transformers(tiny: bool) -> tuple[Any, Callable]:
  import torch

  model = _paligemma_model(tiny)
  model.config.text_config.use_cache = False
  pixels, tokens, images = _paligemma_data(
    model.config, workloads.BATCH["paligemma"], workloads.TEXT_LEN
  )
  labels, kinds = tokens.clone(), torch.zeros_like(tokens)
  labels[:, :images], kinds[:, images:] = -100, 1
  inputs = dict(
    input_ids=tokens,
    attention_mask=torch.ones_like(tokens),
    token_type_ids=kinds,
    labels=labels,
  )

  def loss(dtype):
    return model(pixel_values=pixels.to(dtype), **inputs).loss

  return model, loss


def decode(who: str, dtype: str, rows: int, tiny: bool) -> tuple[Callable[[int], Any], dict]:
  """Greedy generation, as many tokens as asked for: (tokens -> ids, facts).

  Args:
    who: "transformers" or "big_vision".
    dtype: of the weights. rows: prompts of `workloads.PROMPT` text tokens behind a picture.
  """
  if who == "big_vision":
    from benchmarks import peer_big_vision

    return peer_big_vision.decode(rows, tiny)
  import torch

  torch.manual_seed(0)
  model = _paligemma_model(tiny).to(getattr(torch, dtype)).eval()
  model.generation_config.eos_token_id = None
  model.generation_config.pad_token_id = 0
  pixels, tokens, _ = _paligemma_data(model.config, rows, workloads.PROMPT)
  inputs = dict(
    input_ids=tokens,
    attention_mask=torch.ones_like(tokens),
    token_type_ids=torch.zeros_like(tokens),
    pixel_values=pixels.to(model.dtype),
  )

  def generate(new: int):
    with torch.inference_mode():
      out = model.generate(**inputs, do_sample=False, max_new_tokens=new)
    if out.shape[1] != tokens.shape[1] + new:
      raise RuntimeError(f"transformers made {out.shape[1] - tokens.shape[1]} tokens, not {new}")
    return out

  return generate, dict(mode=dtype, versions=contest.versions("transformers"))


def vit_forward(who: str, dtype: str, tiny: bool) -> tuple[Step, dict]:
  """The pooled features of So400m/14 at 224 px for 4 pictures; the weights are in `dtype`.

  Args:
    who: "timm" or "transformers". dtype: "float32" or "bfloat16".
  """
  import torch

  size = 28 if tiny else 224
  if who == "timm":
    import timm

    small = dict(depth=2, embed_dim=32, num_heads=2, mlp_ratio=2.0, img_size=size)
    name = "vit_so400m_patch14_siglip_224"
    model = timm.create_model(name, num_classes=0, **(small if tiny else {}))
  else:
    transformers = _transformers()
    config = transformers.SiglipVisionConfig(
      hidden_size=32 if tiny else 1152,
      intermediate_size=64 if tiny else 4304,
      num_hidden_layers=2 if tiny else 27,
      num_attention_heads=2 if tiny else 16,
      image_size=size,
      patch_size=14,
    )
    model = transformers.SiglipVisionModel(config)
  kind = getattr(torch, dtype)
  model.to(kind).eval()
  pixels = torch.randn(4, 3, size, size).to(kind)

  def step():
    with torch.inference_mode():
      return model(pixels)

  return step, dict(mode=dtype, versions=contest.versions(who))
