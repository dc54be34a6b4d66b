"""Adapters in the files of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

The rules of a family tell which linear layer of transformers a kernel is; the two matrices of its
adapter have the kernel's axes with the rank in place of its outputs, or of its inputs.
"""

import collections
import copy
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bigvlm import lora
from bigvlm.ckpt import axes as axes_lib
from bigvlm.ckpt import sources
from bigvlm.ckpt.rules import CkptMap
from bigvlm.hub import files
from bigvlm.hub.model import HubModel
from bigvlm.parallel import mesh as meshes
from bigvlm.utils import jsons, tree
from bigvlm.utils import names as names_lib

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(re.escape(_PREFIX) + r"(.*)\.lora_([AB])\.weight")
# Names of the hub's files -> names of the modules in transformers 5.23. The first that the map
# reads back as what it came from is the module's; a name without one is the module's itself.
_LAYER = r"((?:\w+\.)?)encoder\.layer\.(\d+)\."
_MODULES = (
  (r"^language_model\.model\.", "model.language_model."),
  (r"^multi_modal_projector\.", "model.multi_modal_projector."),
  (r"^vision_tower\.vision_model\.", "model.vision_tower."),
  (r"^vision_model\.", ""),
  *(
    (f"^{_LAYER}{old}\\.", f"\\1{layers}.\\2.{new}.")
    for layers in ("layers", "encoder.layer")
    for old, new in (
      (r"attention\.attention\.query", "attention.q_proj"),
      (r"attention\.attention\.key", "attention.k_proj"),
      (r"attention\.attention\.value", "attention.v_proj"),
      (r"attention\.output\.dense", "attention.o_proj"),
      (r"intermediate\.dense", "mlp.fc1"),
      (r"output\.dense", "mlp.fc2"),
    )
  ),
)
# Linear layers that transformers makes of several tensors, or the reverse.
_RESHAPED = re.compile(r".*\.mlp\.weights_(in|out)\.weight")
# Fields of the config that change what an adapter is, and the values that change nothing.
_PLAIN = {
  "bias": ("none",),
  "peft_type": ("LORA",),
  "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "lora_ga"),
}
# Fields that say nothing about what the tensors mean.
_READ = (
  *_PLAIN,
  *("r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern"),
  *("use_rslora", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
  *("auto_mapping", "peft_version", "fan_in_fan_out", "exclude_modules", "layers_to_transform"),
  *("layers_pattern", "megatron_core", "megatron_config", "eva_config", "lora_ga_config"),
  *("qalora_group_size", "ensure_weight_tying", "loftq_config", "corda_config"),
)
_TASKS = {"lm": "CAUSAL_LM", "vlm": "CAUSAL_LM", "encdec": "SEQ_2_SEQ_LM"}


class _Layer(NamedTuple):
  """A linear layer of the checkpoint: a kernel, or a row of a stacked one (None = not stacked)."""

  module: str
  row: int | None
  axes: str


def _layers(ckpt_map: CkptMap, shapes: Mapping[str, Any]) -> tuple[dict[str, _Layer], list[str]]:
  """The linear layers by canonical name, and all stored names of kernels."""
  out, every = {}, []
  for binding in ckpt_map.bind(shapes):
    if not binding.dsts[0].endswith("/kernel"):
      continue
    every += binding.keys
    if len(binding.dsts) > 1 or not binding.axes:
      continue
    module = binding.dsts[0].removesuffix("/kernel")
    for row, key in enumerate(binding.keys):
      if key.endswith(".weight") and not _RESHAPED.fullmatch(key):
        out[key] = _Layer(module, row if binding.stacked else None, binding.axes)
  # The projection of a fused attention is part of its one operation.
  fused = {key.removesuffix("in_proj_weight") for key in every if key.endswith(".in_proj_weight")}
  return {k: v for k, v in out.items() if k.rsplit(".", 2)[0] + "." not in fused}, every


def _module(ckpt_map: CkptMap, key: str) -> str:
  """The module in transformers that holds a stored `...weight`."""
  for pattern, replacement in _MODULES:
    found = re.sub(pattern, replacement, key)
    if found != key and ckpt_map.canonical(found) == key:
      return found.removesuffix(".weight")
  return key.removesuffix(".weight")


def _sides(axes: str) -> tuple[str, str]:
  """The patterns of the two matrices of an adapter, from that of the weight."""
  left, right = axes.split("->")
  outs, *ins = re.findall(r"\([^)]*\)|\S+", left)
  produced = outs.strip("()").split()
  first = [n for n in right.split() if n not in produced]
  second = [n for n in right.split() if n in produced]
  ones = " 1" * (len(ins) - 1)  # A convolution's second matrix has a window of one.
  return (
    f"rank {' '.join(ins)} -> {' '.join(first)} rank",
    f"{outs} rank{ones} -> rank {' '.join(second)}",
  )


def _checked(model: Any) -> HubModel:
  if not isinstance(model, HubModel) or model.npz is not None:
    raise ValueError(
      "adapters of PEFT are for models that transformers has: load a hub id or a directory with "
      "config.json (a run is written by `bigvlm convert WORKDIR DST --adapter`)"
    )
  return model


def save(model: Any, directory: str | pathlib.Path, base: str | None = None) -> None:
  """See `bigvlm.lora.save_peft`."""
  if isinstance(model, (str, pathlib.Path)):
    from bigvlm.trainers import finetuned

    base = base or finetuned.base(model)
    model = finetuned.load(model, adapters=True)
  model = _checked(model)
  flat = tree.flatten(model.params)
  if not lora.modules(model.params):
    raise ValueError("there is no LoRA adapter in these parameters; bigvlm.lora.add makes them")
  ckpt_map = model.system.map
  shapes = {name: x for name, x in flat.items() if not lora.is_leaf(name)}
  layers, every = _layers(ckpt_map, shapes)
  known = {layer.module for layer in layers.values()}
  tensors, chosen, settings = {}, [], {}
  for name in lora.modules(model.params):
    if name not in known:
      raise ValueError(f"{name} is no linear layer of its own in transformers: PEFT has no adapter")
  adapters = set(lora.modules(model.params))
  for key, layer in layers.items():
    if layer.module not in adapters:
      continue
    leaves = [np.asarray(flat[f"{layer.module}/{n}"]) for n in (lora.A, lora.B, lora.SCALE)]
    a, b, scale = leaves if layer.row is None else (x[layer.row] for x in leaves)
    if float(scale) == 0.0:  # Of a stack whose other layers have one.
      continue
    module, rank = _module(ckpt_map, key), a.shape[-1]
    for side, x, axes in zip("AB", (a, b), _sides(layer.axes), strict=True):
      tensors[f"{_PREFIX}{module}.lora_{side}.weight"] = np.ascontiguousarray(
        axes_lib.to_stored(x, axes)
      )
    chosen.append(module)
    settings[module] = (rank, _alpha(scale, rank))
  carried = model.origin.carried if model.origin is not None else ()
  others = [_module(ckpt_map, k) for k in (*every, *carried)]
  dropout = [float(np.max(x)) for n, x in flat.items() if n.endswith(f"/{lora.DROPOUT}")]
  base, _, revision = (base or str(model.directory or "")).removeprefix("hf:").partition("@")
  config = _config(settings, max(dropout, default=0.0)) | {
    "base_model_name_or_path": base or None,
    "revision": revision or None,
    "task_type": _TASKS.get(model.system.inputs),
    "target_modules": _targets(chosen, others),
  }
  _write(pathlib.Path(directory), tensors, config)


def _alpha(scale: np.ndarray, rank: int) -> float:
  """The number that was divided by the rank: the shortest that gives the scale again."""
  exact = float(scale) * rank
  short = float(f"{exact:.6g}")
  return short if np.float32(short / rank) == scale else exact


def _config(settings: Mapping[str, tuple[int, float]], dropout: float) -> dict[str, Any]:
  """Rank and alpha of most modules, and the patterns of the others."""
  rank, alpha = (
    collections.Counter(v[i] for v in settings.values()).most_common(1)[0][0] for i in (0, 1)
  )

  def number(x):
    return int(x) if float(x).is_integer() else x

  return {
    "peft_type": "LORA",
    "r": rank,
    "lora_alpha": number(alpha),
    "lora_dropout": round(dropout, 7),
    "rank_pattern": {m: r for m, (r, _) in settings.items() if r != rank},
    "alpha_pattern": {m: number(x) for m, (_, x) in settings.items() if x != alpha},
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "modules_to_save": None,
    "use_dora": False,
    "use_rslora": False,
  }


def _targets(chosen: Iterable[str], others: Iterable[str]) -> list[str]:
  """The last parts of names where those mean these modules and no others, else whole names."""
  chosen = sorted(set(chosen))
  short = sorted({name.rsplit(".", 1)[-1] for name in chosen})
  meant = {name for name in {*others, *chosen} if name.rsplit(".", 1)[-1] in short}
  return short if meant == set(chosen) else chosen


def _write(directory: pathlib.Path, tensors: Mapping[str, np.ndarray], config: Mapping) -> None:
  from safetensors.numpy import save_file

  directory.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as staging:
    staged = pathlib.Path(staging)
    save_file(dict(tensors), staged / TENSORS, metadata={"format": "pt"})
    digests = {name: files.digest(x) for name, x in tensors.items()}
    (staged / files.DIGESTS).write_text(json.dumps(digests, indent=1), "utf-8")
    (staged / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    for name in (TENSORS, files.DIGESTS, CONFIG):
      os.replace(staged / name, directory / name)


def load(model: Any, directory: str | pathlib.Path, verify: str = "full") -> HubModel:
  """See `bigvlm.lora.load_peft`."""
  model, directory = _checked(model), pathlib.Path(directory)
  lora.refuse(model.params, f"load_peft of {directory}")
  if not (directory / CONFIG).is_file():
    raise FileNotFoundError(f"{directory} has no {CONFIG}")
  cfg = _read_config(directory / CONFIG)
  source = sources.Safetensors(directory / TENSORS)
  files.verify(source, directory, verify)
  flat = tree.flatten(model.params)
  layers, _ = _layers(model.system.map, flat)
  found: dict[str, dict[int | None, tuple]] = {}
  pairs = _pairs(source, model.system.map, layers)
  for key, (module, pair) in pairs.items():
    layer, kernel = layers[key], flat[f"{layers[key].module}/kernel"]
    shape = kernel.shape if layer.row is None else kernel.shape[1:]
    _, inputs = lora.axes(layer.module, kernel.ndim)
    a, b = (source.read(pair[side]).astype(np.float32) for side in "AB")
    rank = a.shape[0]
    wanted = ((*shape[:inputs], rank), (rank, *shape[inputs:]))
    for side, x, axes, want in zip("AB", (a, b), _sides(layer.axes), wanted, strict=True):
      if x.shape != axes_lib.stored_shape(axes, want):
        raise ValueError(
          f"{source.path}: {pair[side]} has shape {list(x.shape)}, but {layer.module} of this "
          f"model wants {list(axes_lib.stored_shape(axes, want))}"
        )
    if rank != _pattern(cfg.get("rank_pattern"), module, cfg["r"]):
      raise ValueError(f"{source.path}: {pair['A']} is of rank {rank}, which {CONFIG} denies")
    alpha = _pattern(cfg.get("alpha_pattern"), module, cfg["lora_alpha"])
    scale = alpha / (rank**0.5 if cfg.get("use_rslora") else rank)
    a, b = (
      axes_lib.to_param(x, axes, want)
      for x, axes, want in zip((a, b), _sides(layer.axes), wanted, strict=True)
    )
    found.setdefault(layer.module, {})[layer.row] = (a, b, scale)
  dropout = float(cfg.get("lora_dropout") or 0.0)
  everywhere = meshes.replicated(model.mesh)
  for name, rows in found.items():
    leaves = _stacked(rows, flat[f"{name}/kernel"].shape[0])
    if dropout:
      leaves[lora.DROPOUT] = np.full(leaves[lora.SCALE].shape, dropout, np.float32)
    for leaf, x in leaves.items():
      flat[f"{name}/{leaf}"] = jax.device_put(x, everywhere)
  out = copy.copy(model)
  out.params = tree.unflatten(flat)
  return out


def _pairs(
  source: sources.Source, ckpt_map: CkptMap, layers: Mapping[str, _Layer]
) -> dict[str, tuple[str, dict[str, str]]]:
  """{canonical key of a weight: (module, {"A": stored name, "B": stored name})}."""
  out: dict[str, tuple[str, dict[str, str]]] = {}
  for name in source.specs():
    match = _KEY.fullmatch(name)
    if not match:
      raise ValueError(f"{source.path}: {name} is no part of a LoRA adapter of linear layers")
    key = ckpt_map.canonical(f"{match[1]}.weight")
    if key not in layers:
      near = names_lib.nearest(key, layers, 1)
      hint = f" (nearest: {near[0]})" if near else ""
      raise ValueError(f"{source.path}: this model has no linear layer {match[1]}{hint}")
    sides = out.setdefault(key, (match[1], {}))[1]
    if match[2] in sides:
      raise ValueError(f"{source.path}: {sides[match[2]]} and {name} are the same tensor")
    sides[match[2]] = name
  for module, sides in out.values():
    if len(sides) != 2:
      raise ValueError(f"{source.path}: {module} has lora_{'/'.join(sides)} alone of its adapter")
  if not out:
    raise ValueError(f"{source.path} holds no adapter")
  return out


def _read_config(path: pathlib.Path) -> dict[str, Any]:
  """The config; refuses whatever would make the tensors mean something else."""
  cfg = jsons.read(path)
  for name, good in _PLAIN.items():
    if name in cfg and not any(cfg[name] is v or cfg[name] == v for v in good):
      raise ValueError(f"{path}: {name}={cfg[name]!r} is not supported; {name}={good[0]!r} is")
  for name, value in cfg.items():
    if name not in _READ and value:
      raise ValueError(f"{path}: {name}={value!r} is not supported; only plain LoRA is")
  for name in ("r", "lora_alpha"):
    if not isinstance(cfg.get(name), (int, float)) or cfg[name] <= 0:
      raise ValueError(f"{path}: {name} is {cfg.get(name)!r}, not a number above 0")
  return cfg


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
  """PEFT's value for a module: of the first pattern that is the end of its name."""
  for pattern, value in (patterns or {}).items():
    if re.fullmatch(rf"(.*\.)?({pattern})", module):
      return value
  return default


def _stacked(rows: Mapping[int | None, tuple], depth: int) -> dict[str, np.ndarray]:
  """The leaves of a module; layers without an adapter and ranks below the largest are zeros."""
  rank = max(a.shape[-1] for a, _, _ in rows.values())

  def padded(a, b):
    more = rank - a.shape[-1]
    a = np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, more)])
    return a, np.pad(b, [(0, more)] + [(0, 0)] * (b.ndim - 1))

  if None in rows:
    a, b, scale = rows[None]
    a, b = padded(a, b)
    return {lora.A: a, lora.B: b, lora.SCALE: np.asarray(scale, np.float32)}
  some_a, some_b = padded(*next(iter(rows.values()))[:2])
  out = {
    lora.A: np.zeros((depth, *some_a.shape), np.float32),
    lora.B: np.zeros((depth, *some_b.shape), np.float32),
    lora.SCALE: np.zeros((depth,), np.float32),
  }
  for row, (a, b, scale) in rows.items():
    out[lora.A][row], out[lora.B][row] = padded(a, b)
    out[lora.SCALE][row] = scale
  return out
