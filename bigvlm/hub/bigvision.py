"""big_vision's checkpoints: flat `.npz` files with the model config that its trainers take.

Reference: google-research/big_vision, `models/vit.py`, `models/proj/image_text/two_towers.py`,
`text_transformer.py`, `naflex_vit.py`, `models/proj/paligemma/paligemma.py`, `gemma_bv.py`.

A file's layers are apart (`encoderblock_3/...`) or stacked (`encoderblock/...`), whatever
`scan` says: big_vision reads both. What the config leaves open, the grid of a position table
and the length of texts, the shapes in the file tell.
"""

import math
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from bigvlm.hub import bigvision_rules as bv
from bigvlm.hub.system import System
from bigvlm.models.decoders import decoder
from bigvlm.models.vision import vit
from bigvlm.utils import names

Shapes = Mapping[str, tuple[int, ...]]

# Fields that a forward pass of ours does not need: initialisation, memory, the layout that the file
# itself shows, and the dtype of products and caches, which `load(dtype=)` decides.
_ASIDE = ("head_zeroinit", "scan", "remat_policy", "dtype_mm", "cache_dtype", "dropout_bdims")
_ASIDE += ("norm_eps", "embed_dtype")
_IMAGE_POOLS = {"map": "map", "gap": "gap", "tok": "tok", "0": "first", "none": "none"}
_NAFLEX_POOLS = {"map": "map", "gap": "gap", "none": "none"}
_TEXT_POOLS = {"last": "last", "first": "first", "mean": "mean", "gap": "mean", "max": "max"}
_TEXT_POOLS |= {"gmp": "max", "map": "map"}


def _given(cfg: Any, where: str, **defaults: Any) -> SimpleNamespace:
  """The fields of a config with their defaults.

  Raises:
    ValueError: no object, or a field that big_vision's model does not have.
  """
  if not isinstance(cfg, Mapping):
    raise ValueError(f"{where} is {cfg!r}, not an object of fields")
  for key in cfg:
    if key not in defaults and key not in _ASIDE:
      raise ValueError(names.unknown(f"{where} field", key, (*defaults, *_ASIDE)))
  return SimpleNamespace(**{key: cfg.get(key, value) for key, value in defaults.items()})


def _sizes(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """A tower's config with its `variant` spelt out in big_vision's fields; explicit ones win."""
  fields = dict(cfg)
  variant = fields.pop("variant", None)
  if variant is None:
    return fields
  found = vit.decode_variant(variant)
  sizes = dict(width=found["width"], depth=found["depth"], mlp_dim=found["hidden"])
  sizes |= dict(num_heads=found["heads"])
  if "patch" in found:
    sizes |= dict(patch_size=(found["patch"],) * 2)
  return sizes | fields


def _stack(f: SimpleNamespace) -> dict[str, Any]:
  if f.width % f.num_heads:
    raise ValueError(f"width {f.width} is not a multiple of num_heads {f.num_heads}")
  return dict(
    width=f.width,
    depth=f.depth,
    hidden=f.mlp_dim or 4 * f.width,
    heads=f.num_heads,
    dropout=f.dropout,
  )


def _stacked(shapes: Shapes, prefix: str, cfg: Mapping[str, Any], default: bool = False) -> bool:
  """Whether the layers under a prefix are stacked: in the file, or without one by `scan`."""
  if shapes:
    return any(key.startswith(prefix) for key in shapes)
  return bool(cfg.get("scan", default))


def _image(
  kind: str, cfg: Mapping[str, Any], shapes: Shapes, at: str, where: str, out_dim: int | None
) -> tuple[dict[str, Any], dict[str, Any], tuple]:
  """Encoder config, `System` fields (`image_size`, `options`) and rules of an image tower.

  Args:
    kind: its module, "vit" or "proj.image_text.naflex_vit".
    cfg: its config. shapes: of the file. at: prefix of its tensors. where: for messages.
    out_dim: `num_classes` that the model around it gives.
  """
  readers = {"vit": _vit, "proj.image_text.naflex_vit": _naflex}
  read = names.lookup(f"{where} model of big_vision", kind, readers)
  cfg = {"num_classes": out_dim} | _sizes(cfg)
  encoder, size, options = read(cfg, shapes, at, where)
  stacked = _stacked(shapes, f"{at}Transformer/encoderblock/", cfg)
  cls_posemb = encoder.get("cls_posemb", False)
  found = bv.image_rules(stacked, cls_posemb, encoder["kind"] == "naflex")
  return encoder, dict(image_size=size, options=options), found


def _pooled(f: SimpleNamespace, pools: Mapping[str, str], where: str) -> dict[str, Any]:
  """The fields of the pool and of what follows it."""
  pool = names.lookup(f"{where}.pool_type", f.pool_type, pools)
  rep_size = f.width if f.rep_size is True else f.rep_size or 0
  return dict(pool=pool, rep_size=rep_size, out_dim=f.num_classes or 0)


_TOWER = dict(num_classes=None, width=768, depth=12, mlp_dim=None, num_heads=12, dropout=0.0)
_TOWER |= dict(rep_size=False, pool_type="gap")


def _vit(cfg: Mapping, shapes: Shapes, at: str, where: str) -> tuple[dict, tuple, dict]:
  f = _given(cfg, where, **_TOWER, patch_size=(16, 16), posemb="learn")
  sides = {f.patch_size} if isinstance(f.patch_size, int) else set(f.patch_size)
  if len(sides) != 1:
    raise ValueError(f"{where}.patch_size {list(f.patch_size)} is not square")
  patch = sides.pop()
  if f.posemb not in ("learn", "sincos2d"):
    raise ValueError(names.unknown(f"{where}.posemb", f.posemb, ("learn", "sincos2d")))
  encoder = dict(kind="vit", **_stack(f), patch=patch, posemb=f.posemb)
  encoder |= _pooled(f, _IMAGE_POOLS, where)
  encoder |= dict(keep_cls=encoder["pool"] == "tok")
  table = shapes.get(f"{at}pos_embedding")
  if table is None or f.posemb != "learn" or len(table) != 3:
    grid = 224 // patch or 1
    return encoder, (grid * patch, grid * patch), dict(flat_table=True)
  rows = table[1]
  # The test of the reference: one row more than a square is the class token's.
  cls_posemb = f"{at}cls" in shapes and math.isqrt(rows - 1) ** 2 == rows - 1 > 0
  if cls_posemb:
    encoder |= dict(cls_posemb=True)
    rows -= 1
  side = math.isqrt(rows)
  size = (side, side) if side * side == rows else (1, rows)
  return encoder, (size[0] * patch, size[1] * patch), dict(flat_table=True)


def _naflex(cfg: Mapping, shapes: Shapes, at: str, where: str) -> tuple[dict, tuple, dict]:
  own = dict(posemb="learn_2d(64)", nposemb=None, patchln_pre=False, patchln_post=False)
  f = _given(cfg, where, **_TOWER, **own, patch_size=(16, 16))
  match = re.fullmatch(r"learn_2d(?:\((\d+)\))?", f.posemb)
  if not match:
    raise ValueError(f"{where}.posemb is 'learn_2d' or 'learn_2d(N)', not {f.posemb!r}")
  if f.patchln_pre:
    raise ValueError(f"{where}.patchln_pre, a norm of the raw patches, is not supported")
  side = f.nposemb or shapes.get(f"{at}pos_embedding", (0,))[0]
  if not side:
    raise ValueError(f"{where} needs nposemb")
  kernel = shapes.get(f"{at}embedding/kernel")
  patch = math.isqrt(kernel[0] // 3) if kernel else f.patch_size[0]
  encoder = dict(kind="naflex", **_stack(f), patch=patch, table=(side, side))
  encoder |= dict(resample="bilinear_antialias", patch_norm=bool(f.patchln_post))
  encoder |= _pooled(f, _NAFLEX_POOLS, where)
  return encoder, (side * patch, side * patch), dict(grid=int(match[1] or 64))


def _text(cfg: Any, shapes: Shapes, where: str, out_dim: int | None) -> tuple[dict, int, tuple]:
  """Text tower config, length of its texts and its rules."""
  f = _given(
    {"num_classes": out_dim} | _sizes(cfg),
    where,
    num_classes=None,
    width=512,
    depth=12,
    mlp_dim=2048,
    num_heads=8,
    dropout=0.0,
    vocab_size=32_000,
    pool_type="last",
  )
  length = shapes.get("params/txt/pos_embedding", (1, 64, 0))[1]
  tower = dict(
    kind="text_tower",
    **_stack(f),
    vocab=f.vocab_size,
    length=length,
    pool=names.lookup(f"{where}.pool_type", f.pool_type, _TEXT_POOLS),
    out_dim=f.num_classes or 0,
  )
  stacked = _stacked(shapes, "params/txt/Encoder_0/encoderblock/", cfg)
  return tower, length, bv.text_rules(stacked)


def _two_towers(cfg: Mapping, shapes: Shapes, where: str) -> System:
  f = _given(
    cfg,
    where,
    image=None,
    text=None,
    text_model="proj.image_text.text_transformer",
    image_model="vit",
    out_dim=128,
    temperature_init=1.0,
    bias_init=None,
  )
  texts = {"proj.image_text.text_transformer": _text}
  text = names.lookup(f"{where}.text_model of big_vision", f.text_model, texts)
  dims = (f.out_dim,) * 2 if isinstance(f.out_dim, int) else f.out_dim
  if not isinstance(dims, (list, tuple)) or len(dims) != 2:
    raise ValueError(f"{where}.out_dim is an int or [image, text], not {f.out_dim!r}")
  encoder, fields, image = _image(
    f.image_model, f.image or {}, shapes, "params/img/", f"{where}.image", dims[0]
  )
  tower, length, text = text(f.text or {}, shapes, f"{where}.text", dims[1])
  model = dict(kind="two_tower", encoders=dict(image=encoder), text=tower)
  model |= dict(temperature_init=float(f.temperature_init))
  model |= dict(bias_init=None if f.bias_init is None else float(f.bias_init))
  ckpt_map = bv.two_tower_map(image, text)
  return System(model, ckpt_map, "bv_two_towers", text_len=length, **fields)


def _alone(kind: str):
  def read(cfg: Mapping, shapes: Shapes, where: str) -> System:
    encoder, fields, image = _image(kind, cfg, shapes, "params/", where, None)
    if encoder["pool"] == "none" and (encoder["rep_size"] or encoder["out_dim"]):
      encoder |= dict(pool="all")
    model = dict(kind="encoder", encoders=dict(image=encoder))
    return System(model, bv.vit_map(image), "bv_vit", **fields)

  return read


def gemma(cfg: Any, where: str) -> dict[str, Any]:
  """Decoder config of big_vision's `llm`: a `variant`, or its sizes.

  `final_logits_softcap` and `attn_logits_softcap` of null are the variant's.
  """
  f = _given(
    cfg or {},
    where,
    variant=None,
    vocab_size=None,
    dropout=0.0,
    width=None,
    depth=None,
    mlp_dim=None,
    num_heads=None,
    num_kv_heads=None,
    head_dim=None,
    post_norms=None,
    final_logits_softcap=None,
    attn_logits_softcap=None,
    query_pre_attn_norm=None,
  )
  sizes = dict(
    width=f.width,
    depth=f.depth,
    hidden=f.mlp_dim,
    heads=f.num_heads,
    kv_heads=f.num_kv_heads,
    head_dim=f.head_dim,
  )
  found = dict(post_norms=False, final_softcap=0.0, attn_softcap=0.0)
  if f.variant is not None or f.width is None:
    known = names.lookup(f"{where}.variant", f.variant or "gemma_2b", decoder.VARIANTS)
    found |= {k: known[k] for k in (*sizes, *found) if k in known}
  found |= {key: value for key, value in sizes.items() if value is not None}
  if missing := [key for key in sizes if key not in found]:
    other = {"hidden": "mlp_dim", "heads": "num_heads", "kv_heads": "num_kv_heads"}
    raise ValueError(f"{where} needs {', '.join(other.get(k, k) for k in missing)}, or a variant")
  caps = dict(
    post_norms=f.post_norms,
    final_softcap=f.final_logits_softcap,
    attn_softcap=f.attn_logits_softcap,
  )
  found |= {key: value for key, value in caps.items() if value is not None}
  scales = {
    "rsqrt_head_dim": found["head_dim"] ** -0.5,
    "rsqrt_emb_per_head": (found["width"] // found["heads"]) ** -0.5,
  }
  by = f.query_pre_attn_norm
  by = by or ("rsqrt_emb_per_head" if f.variant == "gemma2_27b" else "rsqrt_head_dim")
  scale = names.lookup(f"{where}.query_pre_attn_norm", by, scales)
  return dict(
    kind="decoder",
    vocab=f.vocab_size or 256_000,
    query_scale=scale,
    dropout=f.dropout,
    **found,
  )


def _paligemma(cfg: Mapping, shapes: Shapes, where: str) -> System:
  f = _given(cfg, where, img_model="vit", img=None, llm_model="proj.paligemma.gemma_bv", llm=None)
  llms = {"proj.paligemma.gemma_bv": gemma}
  llm = names.lookup(f"{where}.llm_model of big_vision", f.llm_model, llms)(f.llm, f"{where}.llm")
  if f.img_model != "vit":
    raise ValueError(names.unknown(f"{where}.img_model of big_vision", f.img_model, ("vit",)))
  encoder, fields, image = _image(
    "vit", f.img or {}, shapes, "params/img/", f"{where}.img", llm["width"]
  )
  width = encoder.pop("out_dim")
  if encoder["pool"] != "none" or encoder["rep_size"] or width != llm["width"]:
    raise ValueError(
      f"{where}.img needs pool_type 'none', no rep_size and no num_classes but the llm's width"
    )
  stacked = _stacked(shapes, "params/llm/layers/attn/", f.llm or {}, default=True)
  model = dict(kind="vlm", encoders=dict(image=encoder), connector=dict(kind="linear"), decoder=llm)
  ckpt_map = bv.paligemma_map(image, bv.gemma_rules(stacked, llm["kv_heads"] != llm["heads"]))
  fields["options"] |= dict(eos=(1,), pad=0)
  return System(model, ckpt_map, "bv_paligemma", **fields)


MODELS = {
  "vit": _alone("vit"),
  "proj.image_text.naflex_vit": _alone("proj.image_text.naflex_vit"),
  "proj.image_text.two_towers": _two_towers,
  "proj.paligemma.paligemma": _paligemma,
}


def system(cfg: Mapping[str, Any], shapes: Shapes, where: str) -> System:
  """The system of a big_vision config and file.

  Args:
    cfg: `model_name` and `model`, as JSON gives them; what else a training config holds is not
      about the model.
    shapes: canonical name -> shape of every tensor in the file; {} without one.
    where: the config's path, for messages.

  Raises:
    ValueError: a model or a field that is not known.
  """
  kind = str(cfg.get("model_name", "")).removeprefix("big_vision.models.")
  if not kind:
    raise ValueError(f"{where} names no `model_name`; one of {', '.join(MODELS)}")
  read = names.lookup("big_vision model_name", kind, MODELS)
  return read(dict(cfg.get("model") or {}), shapes, f"{where}: model")
