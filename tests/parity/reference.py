"""Runs a model of transformers and keeps what it gave: outputs, their noise, greedy ids, files.

A recipe is a function `make(seed) -> (model, inputs, options)`: a tiny model in float32 with
every parameter random (see `common.randomise`), NumPy inputs as its processor would give
them, and options:

  outputs    names of the outputs that are compared
  mask       bool array over the leading axes of the logits: positions that count (not padding)
  generate   new tokens of a greedy run; 0 = none
  prompts    what the reference generates from, if not the inputs: the same, padded on the left
  old_names  ((regex, replacement), ...) from the names that save_pretrained writes to those of
             files on the hub, where they differ
"""

import contextlib
import copy
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

DEFAULTS = dict(outputs=(), mask=None, generate=0, prompts=None, old_names=())


def tensors(inputs: Mapping[str, np.ndarray], dtype: Any = None) -> dict[str, Any]:
  """NumPy inputs as torch's, floating ones in `dtype`."""
  import torch

  out = {}
  for key, value in inputs.items():
    x = torch.from_numpy(np.array(value))
    out[key] = x.to(dtype) if dtype is not None and x.is_floating_point() else x
  return out


def forward(model: Any, inputs: Mapping[str, np.ndarray], names: tuple[str, ...]) -> dict:
  """Outputs of a model by name, as NumPy arrays."""
  import torch

  dtype = next(model.parameters()).dtype
  with torch.no_grad(), wide_softmax():
    given = tensors(inputs, dtype)
    found = dict(model(**given))
    for name, keys in _FEATURES.items():
      owner = model if hasattr(model, f"get_{name}") else getattr(model, "model", None)
      if name in names and keys[0] in given and "qformer_input_ids" not in given:
        seen = {k: given[k] for k in keys if k in given}
        features = getattr(owner, f"get_{name}")(**seen)
        pooled = features.pooler_output
        found[name] = _flat(features.last_hidden_state if pooled is None else pooled)
    found |= _queried(model, given, names, found)
    if "cross_attention_states" in names:
      found["cross_attention_states"] = _states(model, given)
  return {name: _numpy(found[name]) for name in names if found.get(name) is not None}


def _queried(model: Any, given: dict[str, Any], names: tuple[str, ...], found: dict) -> dict:
  """Outputs of models with a Q-Former: they have them under other names, or in other calls."""
  out = {}
  if "qformer_output" in names:
    out["qformer_output"] = found["qformer_outputs"].last_hidden_state
  if "itc_score" in names:
    rest = {k: v for k, v in given.items() if k != "use_image_text_matching_head"}
    out["itc_score"] = model(**rest).logits_per_image
  asked = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")
  for name in ("image_features", "video_features"):
    if name in names and asked[1] in given:
      read = {k: given[k] for k in asked if k in given}
      out[name] = _flat(getattr(model, f"get_{name}")(**read).pooler_output)
  return out


def _states(model: Any, given: dict[str, Any]) -> Any:
  """What the text model's cross-attention sees, [B * I, N, D] with I slots."""
  keys = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
  x = model.model.vision_model(**{k: given[k] for k in keys}).last_hidden_state
  x = model.model.multi_modal_projector(x)
  return x.reshape(-1, *x.shape[-2:])


# What the reference's get_image_features and get_video_features read of the inputs.
_FEATURES = {
  "image_features": (
    "pixel_values",
    "pixel_attention_mask",
    "high_res_pixel_values",
    "image_grid_thw",
    "image_merge_sizes",
    "image_sizes",
    "batch_num_images",
  ),
  "video_features": ("pixel_values_videos", "video_grid_thw", "video_merge_sizes"),
}


def _flat(features: Any) -> Any:
  """Features of pictures as rows [N, D], lists one after the other."""
  import torch

  parts = features if isinstance(features, (list, tuple)) else (features,)
  return torch.cat([x.reshape(-1, x.shape[-1]) for x in parts])


@contextlib.contextmanager
def wide_softmax():
  """Softmax in float64 where the logits are: in float32 a mask of float64's minimum gives NaN."""
  import torch.nn.functional as F

  softmax = F.softmax

  def wide(x, dim=None, dtype=None, **kw):
    return softmax(x, dim=dim, dtype=dtype if x.element_size() < 8 else None, **kw)

  F.softmax = wide
  try:
    yield
  finally:
    F.softmax = softmax


def _numpy(x: Any) -> np.ndarray:
  return x.detach().numpy()


def generate(model: Any, inputs: Mapping[str, np.ndarray], count: int) -> np.ndarray:
  """Greedy new ids int64 [B, n]."""
  import torch

  given = {k: v for k, v in tensors(inputs).items() if not k.startswith("decoder_")}
  with torch.no_grad():
    ids = model.generate(**given, max_new_tokens=count, do_sample=False, num_beams=1)
  encodes = model.config.is_encoder_decoder or model.config.get_text_config().is_encoder_decoder
  start = 1 if encodes else given["input_ids"].shape[1]
  return _numpy(ids)[:, start:]


def record(made: tuple[Any, dict, dict]) -> dict[str, np.ndarray]:
  """Inputs `in_*`, outputs `out_*`, their float32 noise `noise_*`, `ids` and `mask` of a recipe."""
  model, inputs, options = made
  options = DEFAULTS | options
  io = {f"in_{k}": v for k, v in inputs.items()}
  out = forward(model, inputs, options["outputs"])
  double = copy.deepcopy(model).double()
  exact = forward(double, inputs, options["outputs"])
  if any(np.isnan(x).any() for x in exact.values()):
    # Rows that see nothing are NaN in float64; the noise is then that of the same without padding.
    whole = {k: np.ones_like(v) if k == "attention_mask" else v for k, v in inputs.items()}
    pairs = [forward(m, whole, options["outputs"]) for m in (model, double)]
  else:
    pairs = [out, exact]
  for name, x in out.items():
    io[f"out_{name}"] = x
    noise = error(pairs[0][name], pairs[1][name], _mask(name, options["mask"]))
    io[f"noise_{name}"] = np.float64(noise)
  if options["mask"] is not None:
    io["mask"] = options["mask"]
  if options["generate"]:
    prompts = options["prompts"] or inputs
    io["ids"] = generate(model, prompts, options["generate"])
    io |= {f"prompt_{k}": v for k, v in prompts.items() if v is not inputs[k]}
    io["count"] = np.int64(options["generate"])
  return io


def prompts(io: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """What the ids of a record were generated from."""
  inputs = {k[3:]: v for k, v in io.items() if k.startswith("in_")}
  return inputs | {k[7:]: v for k, v in io.items() if k.startswith("prompt_")}


def _mask(name: str, mask: np.ndarray | None) -> np.ndarray | None:
  return mask if name == "logits" else None


def error(ours: np.ndarray, theirs: np.ndarray, mask: np.ndarray | None = None) -> float:
  """max|ours - theirs| / max|theirs|, over the positions of a mask; infinite for another shape."""
  if ours.shape != theirs.shape:
    return float("inf")
  if mask is not None:
    ours, theirs = ours[mask], theirs[mask]
  return float(np.abs(np.float64(ours) - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def save(made: tuple[Any, dict, dict], folder: pathlib.Path, *, old: bool, dtype: str = "") -> None:
  """Writes the checkpoint of a recipe.

  Args:
    made: what the recipe gave.
    folder: to write.
    old: in the style of transformers 4, with the tensor names of the hub's files.
    dtype: "" = float32; "bfloat16" rounds the weights.
  """
  import torch

  model, _, options = made
  if dtype:
    model = copy.deepcopy(model).to(getattr(torch, dtype))
  model.save_pretrained(folder)
  if old:
    _rename(folder / "model.safetensors", (DEFAULTS | options)["old_names"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(v4(config, model.config), indent=1))


def _rename(file: pathlib.Path, pairs: tuple) -> None:
  import safetensors.torch as st

  found = {}
  for name, x in st.load_file(file).items():
    for pattern, replacement in pairs:
      name = re.sub(pattern, replacement, name)
    found[name] = x
  st.save_file(found, file, metadata={"format": "pt"})


def v4(config: dict, made: Any) -> dict:
  """A config as transformers 4 wrote it: old names, and no field that has its class's default."""
  out = {}
  default = type(made)().to_dict()
  for key, value in config.items():
    inner = getattr(made, key, None)
    if isinstance(value, dict) and hasattr(inner, "to_dict"):
      out[key] = v4(value, inner) | {"model_type": inner.model_type}
    elif key in ("architectures", "model_type") or default.get(key) != value:
      out[key] = value
  if "dtype" in config:
    out.pop("dtype", None)
    out["torch_dtype"] = config["dtype"]
  rope = out.pop("rope_parameters", None)
  if rope and "full_attention" in rope:
    out["rope_theta"] = rope["full_attention"]["rope_theta"]
    out["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    _scaling(out, rope["full_attention"])
  elif rope:
    out["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
      out["partial_rotary_factor"] = rope["partial_rotary_factor"]
    _scaling(out, rope)
  out.pop("transformers_version", None)
  return out


def _scaling(out: dict, rope: dict) -> None:
  if rope.get("mrope_section"):
    out["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
  elif rope.get("rope_type", "default") != "default":
    own = ("rope_theta", "partial_rotary_factor")
    out["rope_scaling"] = {k: v for k, v in rope.items() if k not in own}
