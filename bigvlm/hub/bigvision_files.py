"""big_vision's `.npz` files: finding one and its config, reading it, writing one."""

import dataclasses
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm import build
from bigvlm.ckpt import transfer
from bigvlm.ckpt.sources import Npz, Spec
from bigvlm.hub import bigvision, fields, files
from bigvlm.hub import bigvision_rules as bv
from bigvlm.hub import describe as describe_lib
from bigvlm.hub.system import System
from bigvlm.utils import jsons

# Where a text tower's positions were added twice by mistake; the reference loads the sum.
_TWICE = ("params/txt/pos_embedding", "params/txt/Encoder_0/pos_embedding")


class Adapted:
  """A file whose tensors stand in the form that rules can read.

  NaFlex's position table [n, n, D] is [1, n * n, D] here, and the two position tables of old text
  towers are their sum. `restore` is the way back; `config` is what describes the file.
  """

  def __init__(self, source: Npz, config: Mapping[str, Any], naflex: bool):
    self.path = source.path
    self.config = config
    self._source = source
    self._shaped: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    self._summed: dict[str, tuple[str, np.ndarray, np.ndarray, np.ndarray]] = {}
    keys = canonical(source)
    for key in keys.values() if naflex else ():
      x = source.specs()[key].shape
      if key.endswith("pos_embedding") and "/txt/" not in f"/{key}" and len(x) == 3:
        old = source.read(key)
        self._shaped[key] = (old, old.reshape(1, x[0] * x[1], x[2]))
    if all(name in keys for name in _TWICE):
      key, other = (keys[name] for name in _TWICE)
      a, b = source.read(key), source.read(other)
      if a.shape == b.shape:
        self._summed[key] = (other, a, b, (a.astype(np.float32) + b).astype(a.dtype))

  def specs(self) -> Mapping[str, Spec]:
    """Every tensor there is."""
    left = {other for other, *_ in self._summed.values()}
    found = {key: spec for key, spec in self._source.specs().items() if key not in left}
    return found | {k: Spec(x.shape, found[k].dtype) for k, (_, x) in self._shaped.items()}

  def read(self, key: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """A tensor or a slice of it."""
    if key in self._shaped:
      return self._shaped[key][1][tuple(index)]
    if key in self._summed:
      return self._summed[key][3][tuple(index)]
    return self._source.read(key, index)

  def check(self, how: str) -> None:
    """See `Npz.check`."""
    self._source.check(how)

  def restore(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Exported tensors in the file's form and order.

    A sum that has not changed becomes its two parts again, one that has is written with zeros
    beside it.
    """
    out = dict(tensors)
    for key, (old, _) in self._shaped.items():
      out[key] = out[key].reshape(old.shape)
    for key, (other, a, b, total) in self._summed.items():
      same = out[key].dtype == a.dtype and np.array_equal(out[key], total)
      out[other] = b if same else np.zeros_like(out[key])
      out[key] = a if same else out[key]
    return {key: out[key] for key in self._source.specs() if key in out}  # Excused ones are not.


def canonical(source: Any) -> dict[str, str]:
  """Canonical name -> the file's, of every tensor."""
  names = bv.CANONICAL
  return {names.canonical(key): key for key in source.specs()}


def find(path: pathlib.Path, config: Any = None) -> pathlib.Path | None:
  """The `.npz` that a path stands for: itself, or that of a directory; None if it is none.

  A directory holds one if it has no safetensors, and a `model.npz` or a single other `.npz`; its
  `config.json`, if any, must then be big_vision's, unless `config` is given.
  """
  if path.suffix == ".npz":
    return path
  if not path.is_dir() or any(path.glob("*.safetensors*")):
    return None
  if config is None and (path / "config.json").is_file():
    if "model_name" not in jsons.read(path / "config.json"):
      return None
  found = sorted(path.glob("*.npz"))
  if (path / "model.npz").is_file():
    return path / "model.npz"
  return found[0] if len(found) == 1 else None


def describe(path: pathlib.Path, config: Any = None) -> tuple[System, Adapted]:
  """The system and the tensors of a `.npz`.

  Args:
    path: the file.
    config: big_vision's model config, a mapping or the path of a JSON file; None = `config.json`
      beside the file, or what its name says when that is a released one. Its `res`, an int or
      [height, width], is the size of the pictures, if the position table has a row for each patch.

  Raises:
    ValueError: no config, or one that is not understood; pickled objects; a damaged file.
  """
  source = Npz(path)
  specs = source.specs()
  shapes = {name: specs[key].shape for name, key in canonical(source).items()}
  cfg, where = _config(path, config, shapes)
  system = bigvision.system(cfg, shapes, where)
  encoder, res = system.model["encoders"]["image"], cfg.get("res")
  naflex = encoder["kind"] == "naflex"
  if res is not None and not naflex:
    # The table tells the number of patches alone: So400m/14 at 384 reads 378 of the pixels.
    have, want = (
      math.prod(side // encoder["patch"] for side in size)
      for size in (system.image_size, fields.size(res))
    )
    if have == want:
      system = dataclasses.replace(system, image_size=fields.size(res))
  return system, Adapted(source, cfg, naflex)


def _config(path: pathlib.Path, config: Any, shapes: bigvision.Shapes) -> tuple[Mapping, str]:
  if isinstance(config, (str, pathlib.Path)):
    return jsons.read(config), str(config)
  if config is not None:
    config = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(config, Mapping):
      raise ValueError(f"config= is a mapping or the path of a JSON file, not {config!r}")
    return config, "config="
  beside = path.parent / "config.json"
  if beside.is_file():
    cfg = jsons.read(beside)
    if "model_name" in cfg:
      return cfg, str(beside)
  cfg = released(path.stem, shapes)
  if cfg is None:
    raise ValueError(
      f"{path} has no config.json of big_vision beside it and is no released name; give "
      "config=dict(model_name=..., model=...)"
    )
  return cfg, f"the config of {path.name}"


_SIGLIP = re.compile(r"webli_(en|i18n)_(b16|l16|so400m)(_16)?_(\d+)_\d+")
_SIGLIP2 = re.compile(r"siglip2_(b|l|so400m|g-opt)(14|16|32)_(\d+|naflex)")
_PALIGEMMA = re.compile(
  r"(?:pt_(?:(3b|10b|28b)_)?|paligemma-3b-[\w\-]+-|paligemma2-(3b|10b|28b)-[\w\-]+-)"
  r"(224|448|896)(?:[._-](?:bf16|b16|f16|float16|bfloat16|float32))?"
)
_VIT = re.compile(
  r"(?:Ti|S|B|L|H)_\d+-i(?:1k|21k)\b.*|ViT-\w+|vit_\w+_i1k_\w+|bv_deit_3_\w+|imagenet21k_ViT-\w+"
)
_NAMES = {"b": "B", "l": "L", "so400m": "So400m", "g-opt": "g-opt"}
_WIDTHS = {"B": 768, "L": 1024, "So400m": 1152, "g-opt": 1536}


def released(stem: str, shapes: bigvision.Shapes) -> dict[str, Any] | None:
  """The config of a released file, from its name without `.npz`; None for another name.

  From the README files, demos and vanity names of the reference: SigLIP (`webli_en_b16_224_...`),
  SigLIP 2 (`siglip2_b16_224`), PaliGemma (`pt_224.bf16`, `paligemma-3b-pt-224`), PaliGemma 2
  (`pt_3b_224.bf16`, `paligemma2-3b-pt-224.b16`) and plain ViT, whose sizes the tensors tell.
  """
  if match := _SIGLIP.fullmatch(stem):
    language, size, patch16, res = match.groups()
    so400m = "So400m/16" if patch16 else "So400m/14"
    variant = {"b16": "B/16", "l16": "L/16", "so400m": so400m}[size]
    name = variant.split("/")[0]
    image = dict(variant=variant, pool_type="map")
    text = dict(variant=name, vocab_size=32_000 if language == "en" else 250_000)
    return _towers(image, text, None if patch16 else _WIDTHS[name]) | dict(res=int(res))
  if match := _SIGLIP2.fullmatch(stem):
    name, patch, size = _NAMES[match[1]], match[2], match[3]
    text = dict(variant="So400m" if name == "g-opt" else name, vocab_size=256_000)
    if size != "naflex":
      towers = _towers(dict(variant=f"{name}/{patch}", pool_type="map"), text, _WIDTHS[name])
      return towers | dict(res=int(size))
    image = dict(variant=name, pool_type="map", nposemb=16, posemb="learn_2d")
    kind = dict(image_model="proj.image_text.naflex_vit")
    return _towers(image, text, _WIDTHS[name], **kind)
  if match := _PALIGEMMA.fullmatch(stem):
    size = match[1] or match[2]
    variant = f"gemma2_{ {'3b': '2b', '10b': '9b', '28b': '27b'}[size] }" if size else "gemma_2b"
    img = dict(variant="So400m/14", pool_type="none", scan=True)
    llm = dict(variant=variant, vocab_size=256_000 + 1024 + 128)
    return dict(model_name="proj.paligemma.paligemma", model=dict(img=img, llm=llm))
  return _plain_vit(shapes) if _VIT.fullmatch(stem) else None


def _towers(image: dict, text: dict, out_dim: int | None, **more: Any) -> dict[str, Any]:
  model = dict(image=image, text=text, out_dim=[None, out_dim], bias_init=-10.0, **more)
  return dict(model_name="proj.image_text.two_towers", model=model | dict(temperature_init=10.0))


def _plain_vit(shapes: bigvision.Shapes) -> dict[str, Any] | None:
  """The config of a plain ViT, from its tensors."""
  at = "params/Transformer/encoderblock_0"
  patch = shapes.get("params/embedding/kernel")
  query = shapes.get(f"{at}/MultiHeadDotProductAttention_0/query/kernel")
  mlp = shapes.get(f"{at}/MlpBlock_0/Dense_0/kernel")
  if not (patch and query and mlp):
    return None
  found = (re.match(r"params/Transformer/encoderblock_(\d+)/", name) for name in shapes)
  depth = 1 + max(int(match[1]) for match in found if match)
  model = dict(width=query[0], depth=depth, mlp_dim=mlp[1], num_heads=query[1])
  model |= dict(patch_size=list(patch[:2]))
  model |= dict(posemb="learn" if "params/pos_embedding" in shapes else "sincos2d")
  pools = (("params/cls", "tok"), ("params/MAPHead_0/probe", "map"))
  model |= dict(pool_type=next((pool for name, pool in pools if name in shapes), "gap"))
  for field, name in (("rep_size", "pre_logits"), ("num_classes", "head")):
    if f"params/{name}/bias" in shapes:
      model |= {field: shapes[f"params/{name}/bias"][0]}
  return dict(model_name="vit", model=model)


def save(model: Any, file: str | pathlib.Path, dtype: str | None) -> None:
  """Writes a `HubModel` as a `.npz` of big_vision, whole or not at all.

  A model that came from one has its names, layout and dtypes; any other has big_vision's names,
  the layers of image and text towers apart and those of a language model stacked.

  Args:
    model: what to write. file: its path. dtype: of the floating tensors; None = as in the file.

  Raises:
    ValueError: a path without `.npz`, or a model that big_vision does not have.
  """
  path, dtype = pathlib.Path(file), fields.cast(dtype)
  if path.suffix != ".npz":
    raise ValueError(f"save_npz writes a file that ends in .npz, not {path.name}")
  if model.npz is not None:
    tensors = transfer.export(model.system.map, model.params, model.origin, dtype=dtype)
    tensors = model.npz.restore(tensors)
  else:
    tensors = transfer.export(_described(model)[1].map, model.params, dtype=dtype)
    if model.module.encoders["image"].resizes:
      key = next(k for k in ("params/pos_embedding", "params/img/pos_embedding") if k in tensors)
      side = math.isqrt(tensors[key].shape[1])
      tensors[key] = tensors[key].reshape(side, side, -1)
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, staged = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=".npz")
  try:
    with os.fdopen(handle, "wb") as f:
      np.savez(f, **tensors)
    files.publish(pathlib.Path(staged), path)
  except BaseException:
    os.unlink(staged)
    raise


def config(model: Any) -> Mapping[str, Any]:
  """The big_vision config (`model_name`, `model`) of a `HubModel`, of whatever origin.

  Raises:
    ValueError: a model that big_vision does not have; names the first field that differs.
  """
  return _described(model)[0] if model.npz is None else model.npz.config


def _described(model: Any) -> tuple[dict[str, Any], System]:
  """A big_vision config that says what a model is, and its system.

  Its language model sees everything: a window of Gemma 2 that no text of its length fills hides
  nothing.

  Raises:
    ValueError: a model that big_vision does not have; names the first field that differs.
  """
  module, kind = model.module, model.config["model"]["kind"]
  if kind not in ("encoder", "two_tower", "vlm") or list(module.encoders) != ["image"]:
    raise ValueError(f"big_vision has no model like this one (model.kind {kind!r})")
  image = module.encoders["image"]
  pool = {"first": "0", "all": "none"}.get(image.pool, image.pool)
  img = _tower(image) | dict(pool_type=pool)
  img |= dict(rep_size=image.rep_size, num_classes=image.out_dim or None)
  if image.resizes:
    img |= dict(nposemb=image.table[0], posemb="learn_2d", patchln_post=image.patch_norm)
    img_model = "proj.image_text.naflex_vit"
  else:
    img |= dict(posemb=image.posemb)
    img_model = "vit"
  img |= dict(patch_size=(image.patch, image.patch))
  cfg = dict(model_name=img_model, model=img)
  if kind == "two_tower":
    txt = _tower(module.text) | dict(vocab_size=module.text.vocab, pool_type=module.text.pool)
    txt |= dict(num_classes=module.text.out_dim or None)
    both = dict(image=img, image_model=img_model, text=txt)
    both |= dict(bias_init=module.bias_init, temperature_init=module.temperature_init)
    cfg = dict(model_name="proj.image_text.two_towers", model=both)
  elif kind == "vlm":
    module = module.clone(decoder=module.decoder.clone(windows=(0,)))
    both = dict(img=img | dict(num_classes=module.decoder.width), llm=_llm(module.decoder))
    cfg = dict(model_name="proj.paligemma.paligemma", model=both)
  try:
    system = bigvision.system(cfg, {}, "this model")
    difference = describe_lib.difference(module, build.model(system.model))
  except ValueError as e:
    raise ValueError(f"big_vision has no model like this one: {e}") from e
  if difference:
    raise ValueError(f"big_vision has no model like this one: {difference}")
  return cfg, system


def _tower(m: Any) -> dict[str, Any]:
  return dict(width=m.width, depth=m.depth, mlp_dim=m.hidden, num_heads=m.heads)


def _llm(m: Any) -> dict[str, Any]:
  per_head = abs((m.query_scale or m.head_dim**-0.5) - (m.width // m.heads) ** -0.5) < 1e-12
  return _tower(m) | dict(
    num_kv_heads=m.kv_heads,
    head_dim=m.head_dim,
    vocab_size=m.vocab,
    post_norms=m.post_norms,
    final_logits_softcap=m.final_softcap,
    attn_logits_softcap=m.attn_softcap,
    query_pre_attn_norm="rsqrt_emb_per_head" if per_head else "rsqrt_head_dim",
  )
