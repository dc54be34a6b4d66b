"""From config to objects. The tables here are the registry; outside code is "pkg.mod:Name"."""

import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict

from bigvlm.models import encoder as encoder_model
from bigvlm.models import mask_codec, matching, two_tower, vlm
from bigvlm.models.connectors import (
  hybrid,
  linear,
  merger,
  mlp,
  pixel_shuffle,
  plain,
  qformer,
  resampler,
  tiles,
)
from bigvlm.models.connectors import pool as pool_connector
from bigvlm.models.decoders import decoder, encdec
from bigvlm.models.fusion import scatter
from bigvlm.models.text import encoder as text_encoder
from bigvlm.models.text import tower
from bigvlm.models.vision import naflex, packed, padded, raw, sam, tiled, vit
from bigvlm.types import Item
from bigvlm.utils import names

ENCODERS = {
  "naflex": naflex.NaFlex,
  "packed": packed.Packed,
  "padded": padded.PaddedViT,
  "raw": raw.Raw,
  "sam": sam.Sam,
  "tiled": tiled.TiledViT,
  "vit": vit.ViT,
}
TEXTS = {"text_tower": tower.TextTower}
TEXT_ENCODERS = {"encoder": text_encoder.TextEncoder}
CONNECTORS = {
  "hybrid": hybrid.HybridConnector,
  "linear": linear.LinearConnector,
  "merger": merger.Merger,
  "mlp": mlp.MlpConnector,
  "pixel_shuffle": pixel_shuffle.PixelShuffle,
  "plain": plain.PlainConnector,
  "pool": pool_connector.PoolConnector,
  "qformer": qformer.QFormer,
  "resampler": resampler.Resampler,
  "tiles": tiles.TilesConnector,
}
FUSIONS = {"memory": scatter.memory, "scatter": scatter.scatter}
DECODERS = {"decoder": decoder.Decoder, "encdec": encdec.EncDec}
_SIZES = decoder.VARIANTS | encdec.VARIANTS


def lookup(table: Mapping[str, Any], kind: str, where: str) -> Any:
  """Entry of a slot table, or the object that "pkg.mod:Name" names.

  Raises:
    ValueError: no such entry; names the config field and the nearest entries.
  """
  if kind in table:
    return table[kind]
  if ":" in kind:
    module, _, name = kind.partition(":")
    return getattr(importlib.import_module(module), name)
  raise ValueError(names.unknown(where, kind, table))


def _make(table: Mapping[str, Callable], cfg: Mapping, where: str, **common) -> Any:
  """Builds `table[cfg.kind]` from the other fields of cfg; refuses fields it does not have."""
  fields = dict(cfg)
  if "kind" not in fields:
    raise ValueError(f"{where}.kind is not set; one of {', '.join(table)}")
  cls = lookup(table, fields.pop("kind"), f"{where}.kind")
  known = cls.__dataclass_fields__
  for key in fields:
    if key not in known or key in ("parent", "name"):
      raise ValueError(names.unknown(f"{where} field", key, set(known) - {"parent", "name"}))
  fields = {k: _frozen(v) for k, v in fields.items()}
  missing = [
    key
    for key, field in known.items()
    if field.init and field.default is field.default_factory and key not in fields | common
  ]
  if missing:
    raise ValueError(f"{where} needs {', '.join(missing)}")
  return cls(**{k: v for k, v in common.items() if k in known} | fields)


def _frozen(value: Any) -> Any:
  """A field that a module can hash: lists as tuples, dicts frozen."""
  if isinstance(value, list):
    return tuple(value)
  if hasattr(value, "items"):
    return FrozenDict({k: _frozen(v) for k, v in value.items()})
  return value


def _variant(cfg: Mapping, sizes: Callable[[str], dict]) -> dict:
  """cfg with its `variant` replaced by the sizes it stands for; explicit fields win."""
  fields = dict(cfg)
  variant = fields.pop("variant", None)
  return (sizes(variant) if variant else {}) | fields


def _decoder_sizes(variant: str) -> dict:
  return lookup(_SIZES, variant, "model.decoder.variant")


def _common(dtype: Mapping | None, layers: str, remat: str) -> dict:
  dtype = {"params": "float32", "compute": "float32", "logits": "float32"} | dict(dtype or {})
  if layers not in ("loop", "scan"):
    raise ValueError(names.unknown("layers", layers, ("loop", "scan")))
  if remat not in ("none", "dots", "full"):
    raise ValueError(names.unknown("remat", remat, ("none", "dots", "full")))
  return dict(
    dtype=jnp.dtype(dtype["compute"]),
    param_dtype=jnp.dtype(dtype["params"]),
    logits_dtype=jnp.dtype(dtype["logits"]),
    mode=layers,
    remat=remat,
  )


def encoder(cfg: Mapping, where: str = "model.encoders.image", **common) -> nn.Module:
  """A vision encoder from its config."""
  built = _make(ENCODERS, _variant(cfg, vit.decode_variant), where, **common)
  valid_fields = (("stem", vit.STEMS), ("posemb", vit.POSEMBS), ("pool", vit.POOLS))
  for field, valid in (*valid_fields, ("final_norm", vit.FINAL_NORMS)):
    if getattr(built, field, valid[0]) not in valid:
      raise ValueError(names.unknown(f"{where}.{field}", getattr(built, field), valid))
  return built


def model(
  cfg: Mapping, *, dtype: Mapping | None = None, layers: str = "loop", remat: str = "none"
) -> nn.Module:
  """The module of `config.model`.

  Args:
    cfg: `kind` is "encoder", "text_encoder", "two_tower", "matching", "vlm", "lm" or "mask_codec";
      the other fields are its slots.
    dtype: `config.dtype`. layers: "loop" or "scan". remat: "none", "dots" or "full".

  Raises:
    ValueError: an unknown kind or field, with the nearest names.
  """
  common = _common(dtype, layers, remat)
  builders = {
    "encoder": lambda cfg, common: encoder_model.Encoders(FrozenDict(_encoders(cfg, common))),
    "text_encoder": _text_encoder,
    "two_tower": _two_tower,
    "matching": _matching,
    "vlm": _vlm,
    "lm": _lm,
    "mask_codec": _mask_codec,
  }
  return lookup(builders, cfg.get("kind", ""), "model.kind")(cfg, common)


def _encoders(cfg: Mapping, common: dict) -> dict[str, nn.Module]:
  found = dict(cfg.get("encoders", {}))
  if not found:
    raise ValueError("model.encoders is empty; give at least model.encoders.image")
  return {n: encoder(c, f"model.encoders.{n}", **common) for n, c in found.items()}


def _slots(cfg: Mapping, known: tuple[str, ...]) -> dict:
  """The fields of cfg that this kind of model reads.

  A config may hold the slots of several kinds (a contrastive stage before a generative one).
  """
  every = ("kind", "encoders", "text", "out_dim", "temperature_init", "bias_init", "scale_range")
  every += ("connector", "fusion", "decoder", "codec", "word_head")
  for key in cfg:
    if key not in every:
      raise ValueError(names.unknown("model field", key, every))
  return {k: cfg[k] for k in known if k in cfg}


def _text_encoder(cfg: Mapping, common: dict) -> nn.Module:
  return _make(TEXT_ENCODERS, _slots(cfg, ("text",)).get("text", {}), "model.text", **common)


def _two_tower(cfg: Mapping, common: dict) -> nn.Module:
  fields = _slots(cfg, ("text", "out_dim", "temperature_init", "bias_init", "scale_range"))
  encoders = _encoders(cfg, common)
  image = encoders["image"]
  if image.pool == "none":
    raise ValueError("model.encoders.image.pool is 'none'; a two_tower model needs a pooled image")
  if fields.pop("out_dim", None):
    encoders["image"] = image = image.clone(out_dim=cfg["out_dim"])
  text = _variant(fields.pop("text", {}), vit.decode_variant)
  text.setdefault("out_dim", image.out_dim or image.rep_size or image.width)
  built = _make(TEXTS, text, "model.text", **common)
  if fields.get("scale_range"):
    fields["scale_range"] = tuple(fields["scale_range"])
  return two_tower.TwoTower(FrozenDict(encoders), built, **fields)


def _matching(cfg: Mapping, common: dict) -> nn.Module:
  fields = _slots(cfg, ("connector", "out_dim", "temperature_init", "word_head"))
  encoders = {n: e.clone(pool="none") for n, e in _encoders(cfg, common).items()}
  formers = {"qformer": CONNECTORS["qformer"]}
  former = _make(formers, fields.pop("connector", {}), "model.connector", out_dim=0, **common)
  width = fields.pop("out_dim", None) or former.width
  return matching.Matching(FrozenDict(encoders), former, width, **fields)


def _vlm(cfg: Mapping, common: dict) -> nn.Module:
  fields = _slots(cfg, ("connector", "fusion", "decoder"))
  built = _make(
    DECODERS, _variant(fields.get("decoder", {}), _decoder_sizes), "model.decoder", **common
  )
  # Pooling is for a two-tower stage; the decoder reads the patches.
  encoders = {n: e.clone(pool="none") for n, e in _encoders(cfg, common).items()}
  connector = fields.get("connector", {"kind": "linear"})
  connector = _make(CONNECTORS, connector, "model.connector", out_dim=built.width, **common)
  fuse = lookup(FUSIONS, fields.get("fusion", {}).get("kind", "scatter"), "model.fusion.kind")
  # Frozen, so that the module is hashable and jit can take it as a static argument.
  return vlm.VLM(FrozenDict(encoders), connector, fuse, built)


def _lm(cfg: Mapping, common: dict) -> nn.Module:
  """A language model alone: a VLM that never sees media."""
  given = _variant(_slots(cfg, ("decoder",)).get("decoder", {}), _decoder_sizes)
  built = _make(DECODERS, given, "model.decoder", **common)
  return vlm.VLM(FrozenDict({}), None, FUSIONS["scatter"], built)


def _mask_codec(cfg: Mapping, common: dict) -> nn.Module:
  fields = _slots(cfg, ("codec",)).get("codec", {})
  return _make(
    {"mask_codec": mask_codec.MaskCodec}, {"kind": "mask_codec", **fields}, "model.codec"
  )


def image_size(processor_cfg: Mapping) -> tuple[int, int]:
  """(height, width) of `processor.image.size`, an int or a pair."""
  size = processor_cfg["image"]["size"]
  return (size, size) if isinstance(size, int) else tuple(size)


def patch_grid(model_cfg: Mapping, processor_cfg: Mapping, name: str = "image") -> tuple[int, int]:
  """Patch grid (h, w) of an encoder at the processor's image size.

  Raises:
    ValueError: the image is smaller than one patch.
  """
  size = image_size(processor_cfg)
  grid = encoder(model_cfg["encoders"][name]).grid(*size)
  if min(grid) < 1:
    raise ValueError(f"processor.image.size {size} holds no patch of model.encoders.{name}")
  return grid


def processor(model_cfg: Mapping, cfg: Mapping, workdir: str | pathlib.Path | None = None):
  """The host-side processor for a model.

  Args:
    model_cfg: `config.model`, for the number of tokens a picture takes.
    cfg: `config.processor`.
    workdir: what "workdir:FILE" paths in cfg are relative to.
  """
  from bigvlm.processing import processor as processing

  grid, tokens = None, 0
  if model_cfg["kind"] == "vlm":
    grid = patch_grid(model_cfg, cfg)
    connector = model(model_cfg).connector
    count = cfg.get("image", {}).get("count", 1)
    rows = connector.rows([Item(slot, (1, *grid)) for slot in range(count)])
    # A memory is seen, not read: no token stands for it.
    memory = model_cfg.get("fusion", {}).get("kind") == "memory"
    tokens = 0 if memory else sum(map(len, rows))
  return processing.make(cfg, image_tokens=tokens, grid=grid, workdir=workdir)


def objective(cfg: Mapping, mesh) -> Callable:
  """The objective of a stage, for batches sharded over `mesh`."""
  from bigvlm.objectives import table

  return table.make(cfg, mesh)
