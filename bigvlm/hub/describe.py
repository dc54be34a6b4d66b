"""From one of our models to a `config.json`, for a model that did not come with one.

No family has a writer: its reader is run until it reads the model (see `hub.inverse`). Every
description is read back and compared field by field with the model it is of: what transformers'
class cannot say is refused and never left out.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn

from bigvlm import build
from bigvlm.hub import inverse, table
from bigvlm.hub.system import System
from bigvlm.layers import blocks
from bigvlm.utils import names

# Fields that change no number of a trained model at the size it is written for.
_FREE = frozenset(
  "parent name mode remat dtype param_dtype logits_dtype dropout resample length posemb_std "
  "stem_blocks mean std zero_init ordered temperature_init bias_init source".split()
)
# Of each layer of a period, and what stands for none.
_LAYERED = {"windows": 0, "rope_bases": "rope_base", "rope_scales": 1.0}
# Parts of a config, each with something in it, for a reader takes an empty one for none.
_PARTS: dict[str, Any] = {
  f"{name}_config": {"": 0}
  for name in ("text", "vision", "qformer", "perceiver", "high_res_vision")
}
_SIGLIP = dict(vision_config=dict(vision_use_head=False))
_LAST = _SIGLIP | dict(vision_feature_layer=-1)
_WIDE = dict(text_config=dict(hidden_size=3584))
_TRIED = 3  # Classes, when none is named.
_GENERATION = "ForConditionalGeneration"
# What a description begins with, where the defaults of a reader are no beginning.
_SEEDS: dict[str, dict[str, Any]] = {
  "Blip2ForImageTextRetrieval": dict(qformer_config=dict(use_qformer_text_input=True)),
} | {
  f"{name}{_GENERATION}": seed
  for name, seed in {
    "Blip2": dict(image_token_index=0),
    "DeepseekVL": _SIGLIP,
    "DeepseekVLHybrid": _SIGLIP,
    "Gemma3": _SIGLIP,
    "Idefics2": _WIDE,
    "InstructBlip": dict(image_token_index=0),
    "InstructBlipVideo": dict(video_token_index=0),
    "Llava": _LAST,
    "LlavaNext": _LAST,
    "LlavaNextVideo": _LAST,
    "LlavaOnevision": _LAST,
    "Mllama": dict(
      vision_config=dict(hidden_size=1280, intermediate_layers_indices=[3, 7, 15, 23, 30])
    ),
    "PaliGemma": _SIGLIP | dict(text_config=dict(hidden_size=2048)),
    "Qwen2VL": _WIDE,
    "Qwen2_5_VL": _WIDE,
    "VideoLlava": _LAST,
    "VipLlava": dict(vision_feature_layers=[12]),
  }.items()
}


def _text_width(cfg: Mapping[str, Any]) -> int:
  return cfg["text_config"]["hidden_size"]


def _kept_width(cfg: Mapping[str, Any]) -> int:
  vision = cfg["vision_config"]
  return vision["hidden_size"] * (1 + len(vision["intermediate_layers_indices"]))


def _pinpoints(*tiles: tuple[int, int]) -> Callable[[Mapping[str, Any]], list[list[int]]]:
  return lambda cfg: [[n * cfg["vision_config"]["image_size"] for n in tile] for tile in tiles]


_NEXT = {("image_grid_pinpoints",): _pinpoints((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))}
# Fields that others determine.
_DERIVED: dict[str, dict[inverse.Path, Callable[[dict], Any]]] = {
  f"{name}{_GENERATION}": fields
  for name, fields in {
    "Idefics2": {("perceiver_config", "hidden_size"): _text_width},
    "LlavaNext": _NEXT,
    "LlavaNextVideo": _NEXT,
    "LlavaOnevision": {
      ("image_grid_pinpoints",): _pinpoints(*itertools.product(range(1, 7), repeat=2))
    },
    "Mllama": {("vision_config", "vision_output_dim"): _kept_width},
    "PaliGemma": {
      ("projection_dim",): _text_width,
      ("vision_config", "projection_dim"): _text_width,
    },
    "Qwen2VL": {("vision_config", "hidden_size"): _text_width},
    "Qwen2_5_VL": {("vision_config", "out_hidden_size"): _text_width},
    # No layer behind the last that is read.
    "VipLlava": {
      ("vision_config", "num_hidden_layers"): lambda cfg: max(cfg["vision_feature_layers"])
    },
  }.items()
}


def describe(
  model: Mapping[str, Any],
  image_size: tuple[int, int] | None,
  text_len: int,
  dtype: str,
  options: Mapping[str, Any] | None = None,
  *,
  family: str = "",
  hub: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], System]:
  """A `config.json` for a model, and the system that it reads as.

  Args:
    model: `config.model`. image_size: (height, width). text_len: rows of a text tower's table.
    dtype: of the tensors. options: of the system the model had, for its token ids.
    family: a `model_type`, whose class is tried first. hub: fields of the `config.json` that the
      model does not tell (`config.hub`).

  Raises:
    ValueError: no class of transformers that we read is this model; names the first field in which
      the nearest differs.
  """
  hub = dict(hub or {})
  want = _whole(build.model(model), image_size, text_len)
  found = []
  for cls in _classes(want, hub.get("model_type", family), hub):
    search = _search(cls, want)
    found.append((cls, search.solve(_begin(cls, want, hub))))
    if not found[-1][1].left and not found[-1][1].error:
      return _written(cls, search, found[-1][1], want, dict(options or {}), hub, dtype)
  if not found:
    raise ValueError(f"a {model['kind']!r} model has no class in transformers")
  cls, look = found[0]
  why = look.error or "{} is {!r}, not {!r}".format(look.left[0][0], *look.left[0][:0:-1])
  raise ValueError(f"{cls} of transformers is not this model: {why}")


def facts(module: Any, where: str = "model") -> dict[str, Any]:
  """The fields of a module that change its numbers: {"model.decoder.width": 2048, ...}."""
  out: dict[str, Any] = {}
  _collect(module, where, out)
  return out


def difference(ours: Any, theirs: Any) -> str:
  """The first field in which two modules differ, in words; "" if in none."""
  a, b = facts(ours), facts(theirs)
  for name in {**a, **b}:
    if not inverse.same(a.get(name), b.get(name)):
      return f"{name} is {a.get(name)!r}, not {b.get(name)!r}"
  return ""


def _collect(value: Any, where: str, out: dict[str, Any]) -> None:
  if isinstance(value, nn.Module):
    out[where] = type(value).__name__
    # Without a token of its own there is nothing to keep, nor in what is pooled.
    pooled = hasattr(value, "text") or not getattr(value, "cls", True)
    for field in dataclasses.fields(value):
      if field.name not in _FREE:
        _collect(_value(value, field.name), f"{where}.{field.name}", out)
    for name in [n for n in out if pooled and n.startswith(where) and n.endswith(".keep_cls")]:
      del out[name]
  elif isinstance(value, Mapping):
    for key in value:
      _collect(value[key], f"{where}.{key}", out)
  else:
    out[where] = getattr(value, "__name__", tuple(value) if isinstance(value, list) else value)


def _value(module: nn.Module, name: str) -> Any:
  """A field of a module, a default that stands for another field's value spelt out."""
  value = getattr(module, name)
  if name in ("out_bias", "mlp_bias") and value is None:
    return module.bias
  if name == "scale_logits" and value is None:
    return module.tied
  if name == "decoder_depth":
    return value or module.depth
  if name == "query_scale":  # Against the usual one.
    return value * module.head_dim**0.5 if value else 1.0
  if name == "window_cuts_blocks":
    return int(value or not any(module.windows))
  if name == "rope_base" and hasattr(module, "rope_bases"):
    return None  # In those of the layers.
  if name in _LAYERED and hasattr(module, "depth"):
    default = _LAYERED[name]
    every = value or (getattr(module, default) if isinstance(default, str) else default,)
    return blocks.period([every[i % len(every)] for i in range(module.depth)])
  return value


def _whole(module: nn.Module, image_size: Any, text_len: int) -> dict[str, Any]:
  """Facts of a module, and the lengths of its tables, as far as it has any."""
  out = facts(module)
  encoders = dict(getattr(module, "encoders", {}))
  if any(not e.resizes or getattr(e, "fixed", False) for e in encoders.values()):
    out["image_size"] = image_size
  if hasattr(module, "text"):
    out["text_len"] = text_len
  return out


def _search(cls: str, want: Mapping[str, Any]) -> inverse.Search:
  def read(cfg: dict) -> dict[str, Any]:
    system = _filed(table.ARCHITECTURES[cls](cfg), want)
    return _whole(build.model(system.model), system.image_size, system.text_len)

  return inverse.Search(read, want, _DERIVED.get(cls))


def _filed(system: System, want: Mapping[str, Any]) -> System:
  """The system with a head of its own where the model has one and only the file tells."""
  decoder = system.model.get("decoder", {})
  if (
    system.refine is None or want.get("model.decoder.tied") is not False or not decoder.get("tied")
  ):
    return system
  return dataclasses.replace(system, model=system.model | {"decoder": decoder | {"tied": False}})


def _begin(cls: str, want: Mapping[str, Any], hub: Mapping[str, Any]) -> dict[str, Any]:
  out: dict[str, Any] = _PARTS
  if want.get("image_size"):
    height, width = want["image_size"]
    for path in (("image_size",), ("vision_config", "image_size")):
      out = inverse.put(out, path, height if height == width else [height, width])
  for given in (_SEEDS.get(cls, {}), hub):
    for path, value in _leaves(given):
      out = inverse.put(out, path, value)
  return out


def _leaves(cfg: Mapping[str, Any], path: inverse.Path = ()) -> Iterator[tuple[inverse.Path, Any]]:
  for key, value in cfg.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, (*path, key))
    else:
      yield (*path, key), value


def _classes(want: Mapping[str, Any], family: str, hub: Mapping[str, Any]) -> Iterator[str]:
  """Classes of transformers: that of the family, then those whose slots are the model's."""
  first = list(hub.get("architectures", ()))
  if family in table.MODEL_TYPES:
    first.append(table.MODEL_TYPES[family])
  for cls in first:
    names.lookup("architecture", cls, table.ARCHITECTURES)
  yield from first
  others = [c for c in table.ARCHITECTURES if c not in first]
  looks = {c: _search(c, want).look(_begin(c, want, {})) for c in others}
  near = [c for c in others if not any(n == "model" for n, *_ in looks[c].left)]
  yield from sorted(near, key=lambda c: looks[c].cost)[:_TRIED]


def _written(
  cls: str,
  search: inverse.Search,
  look: inverse.Look,
  want: Mapping[str, Any],
  options: Mapping[str, Any],
  hub: Mapping[str, Any],
  dtype: str,
) -> tuple[dict[str, Any], System]:
  """The config that was found, with token ids and defaults that count, and its system."""
  cfg, given = look.config, {path for path, _ in _leaves(hub)}
  system = table.ARCHITECTURES[cls](cfg)
  vocab = want.get("model.decoder.vocab", 1 << 30)
  ids = dict(image_token=vocab - 1, video_token=vocab - 2, pad_token=0, eos_token=vocab - 1)
  for path, value in look.seen.items():
    kind = path[-1].removesuffix("_id").removesuffix("_index")
    if kind not in ids or kind == path[-1]:
      continue
    name = kind if kind in options else kind.removesuffix("_token")
    now = system.options.get(name, value) if value is None else value
    if options.get(name) not in (None, ()):
      cfg = inverse.put(cfg, path, _plain(options[name]))
    elif path not in given and isinstance(now, int) and not 0 <= now < vocab:
      cfg = inverse.put(cfg, path, ids[kind])
  out: dict[str, Any] = dict(architectures=[cls])
  kinds = {c: kind for kind, c in reversed(table.MODEL_TYPES.items())}
  out |= dict(model_type=kinds[cls]) if cls in kinds else {}
  kept = {
    path: v
    for path, v in _leaves(cfg)
    if path in look.seen or path in search.derived or "rope_parameters" in path
  }
  for path, value in look.seen.items():
    # A default of 0 may be the reader's word for none.
    if path in kept or value in (None, 0) or isinstance(value, dict) or not path[-1]:
      continue
    other = inverse.put(cfg, path, [] if isinstance(value, (list, tuple)) else _other(value))
    if _reading(cls, other) != _reading(cls, cfg):
      kept[path] = _plain(value)
  for path, value in kept.items():
    out = inverse.put(out, path, value)
  out |= {"dtype": dtype, "transformers_version": "5.23.0"}
  return out, _filed(table.system(out, "the description of this model"), want)


def _other(value: Any) -> Any:
  return not value if isinstance(value, bool) else "" if isinstance(value, str) else value + 1


def _plain(value: Any) -> Any:
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value] if len(value) != 1 else value[0]
  return value


def _reading(cls: str, cfg: dict[str, Any]) -> Any:
  """What a config reads as, options included; None where it does not."""
  try:
    system = table.ARCHITECTURES[cls](cfg)
  except Exception:
    return None
  return system.model, system.options, system.image_size, system.text_len
