"""The two models whose train step is measured, as the trainer builds and compiles it.

This file is also a config: `bigvlm train benchmarks/workloads.py:kind=siglip,steps=3` with a
workdir that `prepare` filled.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bigvlm import config as config_lib
from bigvlm.configs import common

_RES = dict(siglip=224, paligemma=224)
BATCH = dict(siglip=8, paligemma=4)
TEXT_LEN = 64
_WORDS = "a the red blue small cat dog sits runs under over near house tree river stone".split()


def get_config(arg: str | None = None):
  """The config of one workload.

  Args:
    arg: `kind` siglip (B/16, two towers, sigmoid loss) or paligemma (the reduced one, prefix-LM),
      `dtype` of the products (float32 or bfloat16; parameters are float32), `layers`, `remat`,
      `batch` (0 = 8 and 4), `steps`, `tiny`.
  """
  a = config_lib.parse_arg(
    arg, kind="siglip", dtype="float32", layers="loop", remat="none", batch=0, steps=1000
  )
  c = common.base(name=a.kind, layers=a.layers, remat=a.remat)
  c.model = _siglip(a.tiny) if a.kind == "siglip" else _paligemma(a.tiny)
  c.dtype = dict(params="float32", compute=a.dtype, logits="float32")
  c.processor = dict(
    kind="contrastive" if a.kind == "siglip" else "prefix_lm",
    image=dict(size=28 if a.tiny else _RES[a.kind], method="bilinear", antialias=True),
    tokenizer=dict(kind="sentencepiece", path="workdir:tokenizer.model"),
    text_len=TEXT_LEN,
  )
  fields = ("image", "text") if a.kind == "siglip" else ("image", "prefix", "suffix")
  source = dict(kind="jsonl", path="workdir:data.jsonl", fields=fields)
  c.stages = (
    common.stage(
      name="bench",
      data=dict(sources=(source,)),
      batch_size=a.batch or BATCH[a.kind],
      steps=a.steps,
      objective=dict(kind="sigmoid" if a.kind == "siglip" else "prefix_lm"),
      lr=1e-3,
      weight_decay=((".*/kernel", 1e-4),),
      grad_clip=1.0,
    ),
  )
  return c


def _siglip(tiny: bool) -> dict:
  if not tiny:
    image = dict(kind="vit", variant="B/16", pool="map")
    text = dict(kind="text_tower", variant="B", vocab=32_000)
  else:
    sizes = dict(width=32, depth=1, hidden=64, heads=2)
    image = dict(kind="vit", patch=14, pool="map", **sizes)
    text = dict(kind="text_tower", vocab=2048, **sizes)
  return dict(kind="two_tower", encoders=dict(image=image), text=text)


def _paligemma(tiny: bool) -> dict:
  if not tiny:
    image = dict(width=384, depth=6, hidden=1536, heads=6)
    text = dict(width=512, depth=6, hidden=2048, heads=8, kv_heads=1, head_dim=64, vocab=32_768)
  else:
    image = dict(width=32, depth=1, hidden=64, heads=2)
    text = dict(width=32, depth=1, hidden=64, heads=2, kv_heads=1, head_dim=16, vocab=2048)
  return dict(
    kind="vlm",
    encoders=dict(image=dict(kind="vit", patch=14, **image)),
    connector=dict(kind="linear"),
    decoder=dict(kind="decoder", **text),
  )


def prepare(workdir: pathlib.Path, records: int = 0) -> None:
  """Writes `tokenizer.model` and, with `records` > 0, JPEGs of 500 x 375 and `data.jsonl`."""
  from PIL import Image

  from bigvlm.processing import tokenizer

  rng = np.random.default_rng(0)
  workdir.mkdir(parents=True, exist_ok=True)
  texts = [" ".join(rng.choice(_WORDS, 12)) for _ in range(max(64, records))]
  tokenizer.train(texts, workdir / "tokenizer.model", vocab_size=400)
  lines = []
  for i in range(records):
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    coarse.resize((500, 375)).save(workdir / f"{i}.jpg")
    words = dict(text=texts[i], prefix="caption", suffix=texts[i])
    lines.append(json.dumps(dict(image=f"{i}.jpg", **words)))
  if lines:
    (workdir / "data.jsonl").write_text("\n".join(lines) + "\n")


def arrays(kind: str, spec: Mapping[str, tuple], rows: int, vocab: int) -> dict[str, np.ndarray]:
  """A batch of random pixels and tokens with nothing padded, in the arrays of a processor.

  Args:
    kind: "siglip" or "paligemma" (pictures are prefix, all `TEXT_LEN` tokens are suffix).
    spec: of the processor: {name: (shape, dtype)}.
    rows: of the batch. vocab: tokens are below it.
  """
  rng = np.random.default_rng(0)
  out = {k: np.zeros((rows, *shape), dtype) for k, (shape, dtype) in spec.items() if k != "ids"}
  out["vote"] = np.zeros(rows, np.int32)
  length = out["tokens"].shape[1]
  images, index = length - TEXT_LEN, np.arange(length)
  out["image"][:] = rng.integers(0, 256, out["image"].shape)
  out["image_item"][:], out["segment"][:], out["weights"][:] = 1, 1, 1.0
  out["order"][:] = out["positions"][:] = index
  out["tokens"][:] = rng.integers(3, vocab, out["tokens"].shape)
  out["media_index"][:] = np.where(index < images, index, -1)
  if kind == "siglip":
    out["read"][:] = length - 1
  else:
    out["block"][:] = np.maximum(index - images + 1, 0)
    out["read"][:] = np.arange(images - 1, length - 1)
    out["labels"][:] = out["tokens"][:, images:]
  return out


def train_step(arg: str, workdir: pathlib.Path) -> tuple[Callable[[], Any], dict, tuple[Any, Any]]:
  """The train step of a config, built, initialised and compiled as the trainer does it.

  Args:
    arg: of `get_config`.
    workdir: a folder for the tokeniser.

  Returns:
    (a function that takes one step and waits for it, what is known of the step, (the built
    stage, the batch on the devices)).
  """
  import jax

  from bigvlm.parallel import mesh as mesh_lib
  from bigvlm.trainers import launch, stages, starting

  launch.initialize()
  prepare(workdir)
  config = config_lib.check(get_config(arg))
  stage = stages.resolve(config, workdir)[0]
  built = stages.build(config, stage, workdir)
  vocab = stage.model["text" if config.name == "siglip" else "decoder"]["vocab"]
  rows = stage.cfg["batch_size"]
  batch = arrays(config.name, built.processor.spec(), rows, vocab)
  batch = mesh_lib.put_global(batch, built.mesh)
  state = [starting.start(config, built)]

  def step():
    state[0], out = built.step(state[0], batch)
    jax.block_until_ready((state[0], out))

  facts = dict(rows=rows, tflop=operations(built, batch) / 1e12, versions=dict(jax=jax.__version__))
  return step, facts, (built, batch)


def operations(built: Any, batch: Mapping[str, Any]) -> float:
  """Operations of one train step: 2 a multiply-add, matrix products and attention only.

  The backward pass takes twice the forward pass; nothing is counted for recomputation.
  1.115e12 for SigLIP B/16 with 8 rows, 0.288e12 for the reduced PaliGemma with 4.
  """
  module, rows = built.module, batch["tokens"].shape[0]
  encoder, length = module.encoders["image"], batch["tokens"].shape[1]
  grid = encoder.grid(*batch["image"].shape[-3:-1])
  forward = encoder_operations(encoder, grid[0] * grid[1])
  if hasattr(module, "text"):
    text = module.text
    forward += _layers(length, text.width, text.depth, 4 * text.width**2, 2 * text.hidden)
    forward += 2 * text.width * text.out_dim
  else:
    d = module.decoder
    own = d.width * d.head_dim * (2 * d.heads + 2 * d.kv_heads)
    forward += 2 * grid[0] * grid[1] * encoder.width * d.width
    forward += _layers(length, d.width, d.depth, own, 3 * d.hidden, d.heads * d.head_dim)
    forward += 2 * batch["read"].shape[1] * d.width * d.vocab
  return 3.0 * rows * forward


def encoder_operations(encoder: Any, tokens: int) -> float:
  """Operations of the forward pass of a ViT over one picture of so many tokens."""
  width, hidden = encoder.width, encoder.hidden
  total = 2 * tokens * 3 * encoder.patch**2 * width
  total += _layers(tokens, width, encoder.depth, 4 * width**2, 2 * hidden)
  if encoder.pool == "map":  # One query: keys and values of all tokens, the rest of one.
    total += 2 * (tokens * 2 * width**2 + 2 * width**2 + 2 * width * hidden) + 4 * tokens * width
  return total


PROMPT = 16  # Text tokens of a prompt that is generated from, after those of the picture.


def prompts(rows: int, tiny: bool) -> tuple[dict, Any]:
  """(model config of the reduced PaliGemma, `Batch` of random pictures and prompts on the host)."""
  from bigvlm.types import Batch, MaskSpec, Media, Text

  config = _paligemma(tiny)
  size, vocab = 28 if tiny else 224, config["decoder"]["vocab"]
  images, rng = (size // 14) ** 2, np.random.default_rng(0)
  shape = rows, images + PROMPT
  tokens = rng.integers(3, vocab, shape, dtype=np.int32)
  index = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  mask = MaskSpec(np.ones(shape, np.int32), np.zeros(shape, np.int32), index)
  at = np.where(index < images, index, np.int32(-1))
  text = Text(tokens, mask, index, at, index[:, -1:])
  pixels = rng.integers(0, 256, (rows, 1, size, size, 3), dtype=np.uint8)
  return config, Batch(text, {"image": Media(pixels, np.ones((rows, 1), np.int32))})


def drawn(shapes: Any) -> Any:
  """Random parameters on the device, for which nothing is compiled; vectors are 0."""
  import jax

  rng = np.random.default_rng(0)

  def draw(x):
    scale = 0.02 if x.ndim > 1 else 0.0
    return jax.device_put((scale * rng.standard_normal(x.shape, np.float32)).astype(x.dtype))

  return jax.block_until_ready(jax.tree.map(draw, shapes))


def _layers(tokens, width, depth, attention, hidden, inner=None) -> float:
  """Layers with `attention` weights and an MLP of width x hidden; `inner` = heads x head_dim."""
  products = 2 * tokens * (attention + width * hidden)
  return depth * (products + 4 * tokens**2 * (inner or width))
