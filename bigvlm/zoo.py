"""The models that come with bigvlm, by name, and what is in them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from bigvlm import build, config
from bigvlm.types import Batch, MaskSpec, Media, Text
from bigvlm.utils import names as names_lib
from bigvlm.utils import tree


def names() -> list[str]:
  """Names of the shipped model configs, as `info` and `load_config` take them."""
  return [n.removeprefix("models/") for n in config.shipped() if n.startswith("models/")]


def load_config(name: str):
  """Config of a zoo name `family[:arg]`, a shipped config or the path of a config file.

  Raises:
    ValueError: no such name. FileNotFoundError: no such file.
  """
  family = name.split(":")[0]
  if family in names():
    return config.load(f"models/{name}")
  if not family.endswith(".py") and family not in config.shipped():
    others = [n for n in config.shipped() if not n.startswith("models/")]
    raise ValueError(names_lib.unknown("model or config", family, names() + others))
  return config.load(name)


def abstract_batch(model_cfg: Mapping, processor_cfg: Mapping, rows: int = 1) -> Batch:
  """A batch of shapes for a model, without data: what `eval_shape` and compilation need."""

  def ints(*shape):
    return jax.ShapeDtypeStruct((rows, *shape), jnp.int32)

  if model_cfg["kind"] == "mask_codec":
    mask = jax.ShapeDtypeStruct((rows, 64, 64, 1), jnp.float32)
    return Batch(None, {}, extra={"mask": mask})
  height, width = build.image_size(processor_cfg)
  slots = processor_cfg["image"].get("count", 1)
  # A config may hold encoders that only another kind of model reads.
  texts = ("lm", "text_encoder")
  encoders = () if model_cfg["kind"] in texts else model_cfg["encoders"]
  module, media = build.model(model_cfg), {}
  for name in encoders:  # Some take pictures of one size only.
    size = getattr(module.encoders[name], "size", (height, width))
    pixels = jax.ShapeDtypeStruct((rows, slots, *size, 3), jnp.uint8)
    media[name] = Media(pixels, ints(slots))
  length = processor_cfg["text_len"]
  if model_cfg["kind"] == "vlm":
    grid = build.patch_grid(model_cfg, processor_cfg)
    length += slots * grid[0] * grid[1]

  def text(length):
    mask = MaskSpec(ints(length), ints(length), ints(length))
    return Text(ints(length), mask, ints(length), ints(length), ints(1))

  encodes = hasattr(getattr(module, "decoder", None), "encode")
  return Batch(text(length), media, target=text(1) if encodes else None)


def abstract_params(cfg: Mapping) -> dict:
  """Shapes and dtypes of a config's parameters; allocates nothing."""
  module = build.model(cfg["model"], dtype=cfg["dtype"])
  batch = abstract_batch(cfg["model"], cfg["processor"])
  return jax.eval_shape(module.init, jax.random.key(0), batch)["params"]


def info(name: str) -> str:
  """A table of a model's parameters: count by part, and every tensor.

  Args:
    name: `family[:arg]` of the zoo, e.g. "siglip:variant=So400m/14,res=384", or a config file. A
      config with stages is shown with the model of each stage.

  Raises:
    ValueError: no such name, or a config that does not build.
  """
  cfg = load_config(name)
  stages = cfg.stages or (None,)
  parts = []
  for stage in stages:
    model, processor = cfg.model, cfg.processor
    title = name
    if stage is not None:
      model = config.merge(model, stage.model)
      processor = config.merge(processor, stage.processor)
      title = f"{name}, stage {stage.name}"
    merged = {"model": model, "processor": processor, "dtype": cfg.dtype}
    parts.append(_table(title, tree.flatten(abstract_params(merged))))
  return "\n\n".join(parts)


def _table(title: str, leaves: dict) -> str:
  total = sum(leaf.size for leaf in leaves.values())
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())
  sums: dict[str, int] = {}
  for name, leaf in leaves.items():
    part = "/".join(name.split("/")[:2]) if name.startswith("encoders/") else name.split("/")[0]
    sums[part] = sums.get(part, 0) + leaf.size
  rows = [
    (name, str(leaf.shape), str(leaf.dtype), f"{leaf.size:,}") for name, leaf in leaves.items()
  ]
  widths = [max(len(row[i]) for row in rows) for i in range(4)]
  lines = [f"{title}: {total:,} parameters, {size / 2**30:.2f} GiB"]
  lines += [f"  {part:<{max(map(len, sums))}}  {count:>16,}" for part, count in sums.items()]
  lines.append("")
  for row in rows:
    left = "  ".join(f"{cell:<{width}}" for cell, width in zip(row[:3], widths[:3], strict=True))
    lines.append(f"  {left}  {row[3]:>{widths[3]}}")
  return "\n".join(lines)
