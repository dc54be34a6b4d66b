"""Tiny big_vision checkpoints and what its own code computes with them.

Needs a checkout of github.com/google-research/big_vision at the environment variable BIG_VISION,
with jax, flax, einops and ml_collections; TensorFlow is not needed: the two modules that want it,
`big_vision.utils` and the sharding helper of NaFlex, are replaced, since the models read nothing
of the first and only call functions through the second.

`RECIPES[name](seed) -> (config, params, io)`: the model config as JSON, the flat arrays of the
`.npz`, and `in_*`, `out_*` and (for PaliGemma) greedy `ids`.
"""

import importlib
import os
import sys
import types
from typing import Any

import ml_dtypes
import numpy as np

_VOCAB = 61


def _module(name: str) -> Any:
  """A model module of the checkout."""
  if "big_vision" not in sys.modules:
    root = os.environ.get("BIG_VISION")
    if not root or not os.path.isdir(os.path.join(root, "big_vision", "models")):
      raise FileNotFoundError("set BIG_VISION to a checkout of google-research/big_vision")
    sys.path.insert(0, root)
    importlib.import_module("big_vision")
    sys.modules["big_vision.utils"] = types.ModuleType("big_vision.utils")
    sys.modules["big_vision"].utils = sys.modules["big_vision.utils"]
    helper = types.ModuleType("big_vision.models.proj.image_text.utils")
    helper.batch_shmap = lambda fn, *args: fn(*args)
    sys.modules[helper.__name__] = helper
  return importlib.import_module(f"big_vision.models.{name}")


def _draw(shapes: Any, seed: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
  """Random values for every parameter, flat, with `params/` in front; no norm or bias trivial."""
  from flax import traverse_util

  rng = np.random.default_rng(seed)
  out = {}
  for name, leaf in traverse_util.flatten_dict(shapes, sep="/").items():
    x = rng.standard_normal(leaf.shape).astype(np.float32) * 0.2
    last = name.rsplit("/", 1)[-1]
    if last in ("kernel", "w", "gating_einsum", "linear", "input_embedding", "embedding"):
      x *= 0.8
    if last == "input_embedding":  # A model that does not only repeat, and that ends now and then.
      x *= 0.3
      x[1] *= 2
    elif last == "scale" and "LayerNorm" in name or "encoder_norm" in name and last == "scale":
      x += 1
    elif name in ("t", "b"):
      x += {"t": 2.0, "b": -3.0}[name]
    out[f"params/{name}"] = x.astype(np.float32 if name in ("t", "b") else dtype)
  return out


def _tree(flat: dict[str, np.ndarray]) -> dict:
  from flax import traverse_util

  params = {k.removeprefix("params/"): np.asarray(v, np.float32) for k, v in flat.items()}
  return traverse_util.unflatten_dict(params, sep="/")


def _init(model: Any, *args: Any) -> Any:
  import jax

  return jax.eval_shape(model.init, jax.random.key(0), *args)["params"]


def _pixels(rng: np.random.Generator, *shape: int) -> np.ndarray:
  return rng.uniform(-1, 1, shape).astype(np.float32)


def _two_towers(config: dict, image: Any, text: np.ndarray, seed: int, dtype: Any) -> tuple:
  model = _module("proj.image_text.two_towers").Model(**_frozen(config["model"]))
  flat = _draw(_init(model, image, text), seed, dtype)
  zimg, ztxt, out = model.apply({"params": _tree(flat)}, image, text)
  logits = zimg @ ztxt.T * out["t"] + out.get("b", 0.0)
  found = dict(image_embeds=zimg, text_embeds=ztxt, logits_per_image=logits)
  found |= dict(img_encoded=out["img/encoded"])
  return flat, found


def _frozen(config: dict) -> dict:
  return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}


def _tower(seed: int, heads: int = 3) -> dict[str, int]:
  """Odd sizes of a tower."""
  return dict(
    width=12 * heads + 4 * heads * (seed % 3), depth=2 + seed % 2, mlp_dim=44, num_heads=heads
  )


def _io(inputs: dict, outputs: dict) -> dict[str, np.ndarray]:
  io = {f"in_{k}": np.asarray(v) for k, v in inputs.items()}
  return io | {f"out_{k}": np.asarray(v) for k, v in outputs.items()}


def _siglip(scan: bool, dtype: Any, out_dim: Any, bias: bool, pool: str):
  def make(seed: int) -> tuple[dict, dict, dict]:
    rng = np.random.default_rng(seed)
    image = _tower(seed) | dict(patch_size=[8, 8], pool_type="map")
    text = _tower(seed + 1, heads=2) | dict(vocab_size=_VOCAB, pool_type=pool)
    dims = [None, image["width"]] if out_dim is None else out_dim
    model = dict(image=image | dict(scan=scan), text=text | dict(scan=scan), out_dim=dims)
    model |= dict(temperature_init=10.0) | (dict(bias_init=-10.0) if bias else {})
    config = dict(model_name="proj.image_text.two_towers", model=model)
    given = dict(image=_pixels(rng, 3, 24, 24, 3), text=rng.integers(0, _VOCAB, (2, 7), np.int32))
    flat, out = _two_towers(config, given["image"], given["text"], seed, dtype)
    return config, flat, _io(given, out)

  return make


def _naflex(seed: int) -> tuple[dict, dict, dict]:
  rng = np.random.default_rng(seed)
  image = _tower(seed) | dict(pool_type="map", posemb="learn_2d(8)", nposemb=4)
  text = _tower(seed + 1, heads=2) | dict(vocab_size=_VOCAB, scan=True)
  model = dict(image_model="proj.image_text.naflex_vit", image=image, text=text)
  model |= dict(out_dim=[None, image["width"]], bias_init=-10.0)
  config = dict(model_name="proj.image_text.two_towers", model=model)
  grids, length, patch = ((2, 5), (4, 3), (6, 1), (3, 4)), 13, 4
  given = dict(patches=_pixels(rng, len(grids), length, patch * patch * 3))
  for name in ("ptype", "yabs", "xabs"):
    given[name] = np.zeros((len(grids), length), np.int32)
  for row, (h, w) in enumerate(grids):
    given["ptype"][row, : h * w] = 1
    y, x = np.mgrid[:h, :w]
    given["yabs"][row, : h * w], given["xabs"][row, : h * w] = y.reshape(-1), x.reshape(-1)
  image = tuple(given[name] for name in ("patches", "ptype", "yabs", "xabs"))
  given["text"] = rng.integers(0, _VOCAB, (2, 6), np.int32)
  flat, out = _two_towers(config, image, given["text"], seed, np.float32)
  out["img_encoded"] = np.asarray(out["img_encoded"]) * (given["ptype"] == 1)[:, :, None]
  return config, flat, _io(given, out)


def _vit(size: tuple[int, int], **fields: Any):
  def make(seed: int) -> tuple[dict, dict, dict]:
    rng = np.random.default_rng(seed)
    model = _tower(seed) | dict(patch_size=[8, 8]) | fields
    config = dict(model_name="vit", model=model)
    image = _pixels(rng, 2, *size, 3)
    module = _module("vit").Model(**_frozen(model))
    flat = _draw(_init(module, image), seed)
    _, out = module.apply({"params": _tree(flat)}, image)
    names = [n for n in ("encoded", "pre_logits", "logits") if n in out]
    return config, flat, _io(dict(image=image), {n: out[n] for n in names})

  return make


def _paligemma(dtype: Any, scan: bool, **llm: Any):
  def make(seed: int) -> tuple[dict, dict, dict]:
    import ml_collections

    rng = np.random.default_rng(seed)
    img = _tower(seed) | dict(patch_size=[8, 8], pool_type="none", scan=scan)
    llm_ = dict(width=40 + 12 * (seed % 2), depth=2, mlp_dim=56, head_dim=16, vocab_size=_VOCAB)
    llm_ |= dict(scan=scan) | llm
    config = dict(model_name="proj.paligemma.paligemma", model=dict(img=img, llm=llm_))
    # The reference knows sizes by `variant` only.
    sizes = dict(variant="tiny", norm_eps=1e-6, remat_policy="nothing_saveable") | llm_
    _module("ppp.gemma").get_config = lambda _: ml_collections.ConfigDict(sizes)
    kept = {k: llm_[k] for k in ("vocab_size", "scan")} | dict(cache_dtype="float32")
    model = _module("proj.paligemma.paligemma").Model(
      img=_frozen(img), llm=dict(variant="tiny") | kept
    )
    given = dict(image=_pixels(rng, 3, 16, 24, 3))
    given["text"] = rng.integers(2, _VOCAB, (3, 8), np.int32)
    given["mask_ar"] = np.zeros((3, 8), np.int32)
    given["input_mask"] = np.ones((3, 8), bool)
    for row, (prefix, end) in enumerate(((4, 8), (2, 6), (5, 7))):
      given["mask_ar"][row, prefix:] = 1
      given["input_mask"][row, end:] = False
    flat = _draw(_init(model, given["image"], given["text"], given["mask_ar"]), seed, dtype)
    variables = {"params": _tree(flat)}
    run = _runner(model)
    out = run(variables, given)
    prompt = given | dict(mask_ar=np.zeros((3, 8), np.int32))
    io = _io(given, out)
    io["ids"], io["count"] = _greedy(run, variables, prompt, 8), np.int64(8)
    return config, flat, io

  return make


def _runner(model: Any) -> Any:
  """The reference's forward pass with a mask of padding, of the same parts as its `__call__`."""
  import jax
  from big_vision.models.proj.paligemma.paligemma import make_attn_mask

  def run(m, given):
    (x, mask, ar), out = m.embed_image_and_text(
      given["image"], given["text"], input_mask=given["input_mask"], mask_ar=given["mask_ar"]
    )
    _, llm = m._llm(x, mask=make_attn_mask(mask, ar))
    count = out["img/zimg"].shape[1]
    logits = m._llm.compute_logits(llm["pre_logits"][:, count:])
    return dict(
      logits=logits,
      llm_logits=llm["logits"],
      llm_pre_logits=llm["pre_logits"],
      img_encoded=out["img/encoded"],
      image_features=out["img/zimg"],
    )

  return jax.jit(lambda variables, given: model.apply(variables, given, method=run))


def _greedy(run: Any, variables: Any, given: dict, count: int) -> np.ndarray:
  """Greedy ids int32 [B, count] by whole forward passes; 0 after the end token, 1."""
  rows = given["text"].shape[0]
  done, out = np.zeros(rows, bool), np.zeros((rows, count), np.int32)
  given = {k: np.array(v) for k, v in given.items()}
  ends = given["input_mask"].sum(1)
  for key, fill in (("text", 0), ("mask_ar", 1), ("input_mask", False)):
    extra = np.full((rows, count), fill, given[key].dtype)
    given[key] = np.concatenate([given[key], extra], axis=1)
  for n in range(count):
    logits = np.asarray(run(variables, given)["logits"])
    new = logits[np.arange(rows), ends + n - 1].argmax(-1)
    out[:, n] = np.where(done, 0, new)
    done |= new == 1
    for row in range(rows):
      at = ends[row] + n
      given["text"][row, at], given["mask_ar"][row, at:] = new[row], 1
      given["input_mask"][row, at] = True
  return out


_BF16 = ml_dtypes.bfloat16
_GEMMA2 = dict(post_norms=True, final_logits_softcap=4.0, attn_logits_softcap=3.0)

RECIPES = {
  "siglip": _siglip(False, np.float32, None, True, "last"),
  "siglip_scan_bf16": _siglip(True, _BF16, 20, False, "map"),
  "siglip2_naflex": _naflex,
  "vit_gap": _vit((16, 24), pool_type="gap", posemb="sincos2d", rep_size=True, num_classes=5),
  "vit_tok": _vit((16, 24), pool_type="tok", rep_size=12, num_classes=5, scan=True),
  "vit_none": _vit((24, 24), pool_type="none"),
  "vit_every": _vit((16, 16), pool_type="none", rep_size=12, num_classes=5),
  "paligemma": _paligemma(np.float32, True, num_heads=4, num_kv_heads=1),
  "paligemma2": _paligemma(
    np.float32,
    False,
    num_heads=4,
    num_kv_heads=2,
    query_pre_attn_norm="rsqrt_emb_per_head",
    **_GEMMA2,
  ),
  "paligemma_bf16": _paligemma(_BF16, True, num_heads=2, num_kv_heads=2),
}
