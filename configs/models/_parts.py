"""Encoders that published systems share, and the config of a system from its slots."""

from bigvlm import config
from bigvlm.configs import common
from bigvlm.utils import names

OPENAI = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _vit(width, depth, hidden, heads, patch, **more):
  sizes = dict(width=width, depth=depth, hidden=hidden, heads=heads, patch=patch)
  return dict(kind="vit", resample="bicubic", **sizes, **more)


# CLIP's L/14 up to the last layer but one, whose features LLaVA reads; the class token is dropped.
CLIP_L = _vit(
  1024,
  23,
  4096,
  16,
  14,
  act="quick_gelu",
  eps=1e-5,
  patch_bias=False,
  cls=True,
  cls_posemb=True,
  pre_norm=True,
  final_norm="none",
  **OPENAI,
)
# SigLIP's So400m/14, whole and without its last layer and norm.
SO400M = _vit(1152, 27, 4304, 16, 14)
SO400M_26 = SO400M | dict(depth=26, final_norm="none")
SIGLIP_B_16 = _vit(768, 12, 3072, 12, 16)
SIGLIP_L_16 = _vit(1024, 24, 4096, 16, 16, act="gelu")
# EVA's g/14, which BLIP-2 reads whole.
EVA_G = _vit(
  1408,
  39,
  6144,
  16,
  14,
  act="gelu",
  out_bias=True,
  mlp_bias=True,
  cls=True,
  cls_posemb=True,
  keep_cls=True,
  **OPENAI,
)
PIXTRAL = dict(
  kind="packed",
  width=1024,
  depth=24,
  hidden=4096,
  heads=16,
  patch=16,
  pre_norm=True,
  norm="rms_plain",
  eps=1e-5,
  act="gelu",
  gated=True,
  bias=False,
  rope_share="turns",
  **OPENAI,
)
_TINY = dict(width=32, depth=2, hidden=64, heads=2, patch=8)
_TINY_ENCODERS = dict(
  padded=dict(table=(2, 2)),
  sam=dict(table=(4, 4), window=3, everywhere=(1,), tap=2, out_dim=16),
  tiled=dict(keep=(0,), depth_global=1),
)
_TINY_CONNECTORS = dict(
  hybrid=dict(channels=16),
  qformer=dict(queries=4, width=32, depth=2, hidden=64, heads=2),
  resampler=dict(latents=4, depth=1, heads=2, head_dim=16, hidden=128),
)


def tiny(model):
  """A system's slots at toy sizes, with everything that makes it that system."""
  out = dict(model)
  out["encoders"] = {name: _tiny_encoder(e) for name, e in model.get("encoders", {}).items()}
  c = dict(model.get("connector", {}))
  if c:
    toys = dict(vocab=512, proj=64, mix=32, hidden=128)
    if c.get("kv_heads"):
      toys["kv_heads"] = 1 if c["kv_heads"] < c["heads"] else 2
    c |= _TINY_CONNECTORS.get(c["kind"], {})
    out["connector"] = c | {k: v for k, v in toys.items() if c.get(k)}
  if "decoder" in model:
    out["decoder"] = _tiny_decoder(model["decoder"])
  return out if out["encoders"] else {k: v for k, v in out.items() if k != "encoders"}


def _tiny_encoder(e):
  if e["kind"] == "raw":
    return e | dict(patch=8)
  more = dict(taps=tuple(min(n, 2) for n in e["taps"])) if e.get("taps") else {}
  if e.get("windows"):
    more["windows"] = (e["windows"][0], e["windows"][-1])
  return e | _TINY | _TINY_ENCODERS.get(e["kind"], {}) | more


def _tiny_decoder(d):
  toy = dict(vocab=512, width=32, depth=2, hidden=64, heads=2, head_dim=16)
  if d["kind"] == "encdec":
    return d | toy | dict(decoder_depth=2)
  toy["kv_heads"] = 1 if d["kv_heads"] < d["heads"] else 2
  if d.get("cross_layers"):
    toy["cross_layers"] = (min(d["cross_layers"][0], 1),)
  if d.get("cross", {}).get("width"):
    toy["cross"] = d["cross"] | dict(width=32)
  if d.get("out_vocab"):
    toy["out_vocab"] = 504
  if d.get("embed_dim"):
    toy["embed_dim"] = 24
  rotary = d.get("rotary", {})
  if rotary.get("dim") or rotary.get("sections"):
    toys = dict(dim=8, sections=(2, 3, 3))
    toy["rotary"] = rotary | {k: v for k, v in toys.items() if rotary.get(k)}
  return d | toy


def vlm(encoder, connector, decoder, **more):
  """The slots of a vision-language model with one encoder."""
  encoders = encoder if "kind" not in encoder else dict(image=encoder)
  return dict(kind="vlm", encoders=encoders, connector=connector, decoder=decoder, **more)


def lm(decoder):
  """The slots of a text model."""
  return dict(kind="lm", decoder=decoder)


def system(family, arg, sizes, *, default, res=0, tiny_res=16, text_len=512, hub=None):
  """Config of a published system.

  Args:
    family: name of the config.
    arg: of `get_config`: a size's name, alone or as `size=NAME`; `res` in pixels, `text_len` and
      `target_len` in tokens, `tiny`.
    sizes: name -> (owner/name on the hub, slots[, pixels]).
    default: name of a size.
    res: pixels of a picture where the size has none; 0 = there are no pictures.
    tiny_res: of the toy. text_len: default.
    hub: name of a size, or "" for all -> `hub` of the config. Ids of tokens are not the toy's.
  """
  parts = [p.strip() for p in (arg or "").split(",")]
  arg = ",".join(f"size={p}" if p in sizes else p for p in parts)
  a = config.parse_arg(arg, size=default, res=0, text_len=0, target_len=0)
  hub_id, model, *pixels = names.lookup(f"{family} size", a.size, sizes)
  c = common.base(name=family)
  if a.tiny:
    model, pixels, text_len = tiny(model), (tiny_res,), 16
  else:
    c.init = dict(source=f"hf:{hub_id}")
  facts = dict(hub or {})
  c.hub = {**facts.get("", {}), **facts.get(a.size, {})}
  if a.tiny:
    c.hub = {k: v for k, v in c.hub.items() if not k.endswith(("_index", "_id"))}
  c.model = model
  both = model.get("decoder", {}).get("kind") == "encdec"
  c.processor = dict(
    kind="seq2seq" if both else "prefix_lm",
    image=dict(size=a.res or (pixels[0] if pixels else res) or 8, method="bicubic", antialias=True),
    tokenizer=dict(kind="sentencepiece", path=""),
    text_len=a.text_len or text_len,
    **(dict(target_len=a.target_len or (8 if a.tiny else 128)) if both else {}),
  )
  return c
