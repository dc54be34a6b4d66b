"""big_vision's inputs to a batch, and outputs to its names.

A kind is a function (model, inputs) -> outputs; `KINDS` is the table, `GENERATORS` that of
(model, inputs, max_new_tokens) -> ids, `BATCHES` that of `decoding`. `processor` prepares them as
big_vision does. All arrays are NumPy.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bigvlm import generate as generation
from bigvlm.hub import decoding, inputs
from bigvlm.processing.hub import bigvision
from bigvlm.types import Batch, Item, MaskSpec, Media, Text

_PATCHES = ("patches", "ptype", "yabs", "xabs")
# More numbers than these, a GiB, are no output that somebody wants by the way.
_MOST = 2**28


def _need(given: Mapping[str, np.ndarray], name: str) -> np.ndarray:
  if name not in given:
    raise ValueError(f"the inputs lack {name}; they have {', '.join(given) or 'nothing'}")
  return given[name]


def _float(x: np.ndarray, name: str, want: str) -> np.ndarray:
  """Pixels, float32; `want` is their shape in words.

  Raises:
    ValueError: of another rank, or integers, which are not in [-1, 1].
  """
  if x.ndim not in (len(w.split()) for w in want.split(" or ")):
    raise ValueError(f"{name} must be [{want}], not {list(x.shape)}")
  if x.dtype.kind in "iub":
    raise ValueError(f"{name} must be float in [-1, 1], not {x.dtype}")
  return x.astype(np.float32)


def _pixels(given: Mapping[str, np.ndarray], frames: bool = False) -> Media:
  """`image` [B, H, W, 3] or, with `frames`, [B, F, H, W, 3] as slots."""
  want = "B H W 3 or B F H W 3" if frames else "B H W 3"
  x = _float(_need(given, "image"), "image", want)
  if x.shape[-1] != 3 or not x.size:
    raise ValueError(f"image must be [{want}], not {list(x.shape)}")
  x = x if x.ndim == 5 else x[:, None]
  count = np.arange(1, x.shape[1] + 1, dtype=np.int32)
  return Media(x, np.broadcast_to(count, x.shape[:2]))


def _packed(model: Any, given: Mapping[str, np.ndarray]) -> Media:
  """NaFlex's `patches` [B, N, P * P * 3], `ptype` (1 = patch), `yabs`, `xabs` [B, N]."""
  patches = _float(_need(given, "patches"), "patches", "B N P*P*3")
  size = 3 * model.module.encoders["image"].patch ** 2
  if patches.shape[2] != size:
    raise ValueError(f"patches must be [B, N, {size}], not {list(patches.shape)}")
  rest = {name: _need(given, name) for name in _PATCHES[1:]}
  for name, x in rest.items():
    if x.shape != patches.shape[:2]:
      raise ValueError(f"{name} is {list(x.shape)}, but patches is {list(patches.shape)}")
  pos = np.stack([rest["yabs"], rest["xabs"]], axis=-1).astype(np.int32)
  most = model.system.options["grid"]
  if (pos < 0).any() or (pos >= most).any():
    bad = int(np.argwhere(((pos < 0) | (pos >= most)).any(axis=(1, 2)))[0, 0])
    raise ValueError(f"yabs, xabs of row {bad} go beyond the {most}x{most} patches of this model")
  return Media(None, (rest["ptype"] == 1).astype(np.int32), patches, pos)


def _media(model: Any, given: Mapping[str, np.ndarray]) -> Media:
  return _packed(model, given) if _names(model) == _PATCHES else _pixels(given)


def _names(model: Any) -> tuple[str, ...]:
  """Names of the inputs that are images."""
  return _PATCHES if model.module.encoders["image"].resizes else ("image",)


def vit(model: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A ViT alone: `encoded` [B, N, D], `pre_logits` [B, D'] and, with a head, `logits` [B, C].

  Without a pool the last two are of every patch, [B, N, ...].
  """
  given = inputs.take(given, *_names(model))
  module, encoder = model.module, model.module.encoders["image"]
  if encoder.out_dim:
    headless = encoder.clone(out_dim=0)
    module = module.clone(encoders=module.encoders.copy({"image": headless}))
  out = model.apply(Batch(None, {"image": _media(model, given)}), module)
  encoded = np.asarray(out.feats["image"].x[:, 0])
  pooled = np.asarray(out.heads.get("image", encoded))
  if encoder.pool == "all":
    pooled = pooled.reshape(*encoded.shape[:2], -1)
  found = {"encoded": encoded, "pre_logits": pooled}
  if encoder.out_dim:
    head = model.params["encoders"]["image"]["head"]
    kernel, bias = (np.asarray(head[name], np.float32) for name in ("kernel", "bias"))
    found["logits"] = found["pre_logits"] @ kernel + bias
  return found


def two_towers(model: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Images, texts or both, in any numbers.

  `image_embeds`, `text_embeds` [B, D], normalised, `img_encoded` [B, N, D], and with both
  `logits_per_image` and `logits_per_text`.
  """
  given = inputs.take(given, *_names(model), "text")
  out = {}
  if set(given) - {"text"}:
    found = model.apply(Batch(None, {"image": _media(model, given)}))
    heads = found.heads
    out["image_embeds"] = np.asarray(heads["image"])
    out["img_encoded"] = np.asarray(found.feats["image"].x[:, 0])
  if "text" in given:
    tower = model.module.text
    tokens = inputs.ids(given["text"], tower.vocab, "text")
    if tokens.shape[1] != tower.length:
      raise ValueError(f"text must have {tower.length} tokens a row, not {tokens.shape[1]}")
    heads = model.apply(Batch(inputs.text(tokens, None, 0), {})).heads
    out["text_embeds"] = np.asarray(heads["text"])
  if not out:
    raise ValueError(f"the inputs lack {' and '.join(_names(model))}, and text")
  if "image_embeds" in out and "text_embeds" in out:
    scale, bias = np.float32(heads["scale"]), np.float32(heads["bias"])
    logits = out["image_embeds"] @ out["text_embeds"].T * scale + bias
    out |= {"logits_per_image": logits, "logits_per_text": logits.T}
  return out


def _prompt(model: Any, given: Mapping[str, Any]) -> tuple[Batch, int, np.ndarray]:
  """The batch of PaliGemma's inputs: image tokens, then the text.

  Returns:
    The batch, which reads the text's positions; the number of image tokens; bool [B, T], the
    tokens that are not padding.
  """
  given = inputs.take(given, "image", "text", "mask_ar", "input_mask", "mask_loss")
  tokens = inputs.ids(_need(given, "text"), model.module.decoder.vocab, "text")
  media = _pixels(given, frames=True)
  rows, frames, height, width, _ = media.pixels.shape
  if rows != tokens.shape[0]:
    raise ValueError(f"image has {rows} rows, but text has {tokens.shape[0]}")
  masks = {}
  for name in ("mask_ar", "input_mask"):
    masks[name] = np.asarray(given.get(name, np.ones_like(tokens)))
    if masks[name].shape != tokens.shape:
      raise ValueError(f"{name} is {list(masks[name].shape)}, but text is {list(tokens.shape)}")
  real = masks["input_mask"] > 0
  grid = model.module.encoders["image"].grid(height, width)
  items = [Item(n, (1, *grid)) for n in range(frames)]
  index = np.concatenate(model.module.connector.rows(items)).astype(np.int32)

  def join(image: Any, text: np.ndarray) -> np.ndarray:
    left = np.broadcast_to(np.asarray(image, np.int32), (rows, len(index)))
    return np.concatenate([left, text.astype(np.int32)], axis=1)

  ar = join(0, masks["mask_ar"])
  column = np.broadcast_to(np.arange(ar.shape[1], dtype=np.int32), ar.shape)
  spec = MaskSpec(join(1, real), np.cumsum(ar, axis=1, dtype=np.int32), column)
  at = join(index, np.full_like(tokens, -1))
  text = Text(join(0, tokens), spec, column, at, column[:, len(index) :])
  return Batch(text, {"image": media}), len(index), real


def paligemma(model: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """PaliGemma's forward pass over image and text.

  Returns:
    `logits` [B, T, V] of the text, never soft-capped; `image_features` [B * N, D] as the language
    model reads them, `img_encoded` [B * F, N, D'], `llm_pre_logits` [B, N + T, D] after the last
    norm, and, unless it is very large, `llm_logits` [B, N + T, V], soft-capped.
  """
  batch, count, _ = _prompt(model, given)
  decoder = model.module.decoder
  rows, length = batch.text.tokens.shape
  whole = rows * length * decoder.vocab <= _MOST
  if whole:
    batch = batch.replace(text=batch.text.replace(read=batch.text.positions))
  out = model.apply(batch, model.module.clone(decoder=decoder.clone(final_softcap=0.0)))
  logits, cap = np.asarray(out.logits), np.float32(decoder.final_softcap)
  found = {"logits": logits[:, count:] if whole else logits}
  if whole:
    found["llm_logits"] = np.tanh(logits / cap) * cap if cap else logits
  encoded = np.asarray(out.feats["image"].x)
  return found | {
    "image_features": np.asarray(out.soft.x).reshape(-1, decoder.width),
    "img_encoded": encoded.reshape(-1, *encoded.shape[2:]),
    "llm_pre_logits": np.asarray(out.hidden),
  }


def greedy(model: Any, given: Mapping[str, Any], max_new_tokens: int) -> np.ndarray:
  """Continues prompts that are padded on the right under `input_mask`, int32 [B, n].

  Raises:
    ValueError: also a prompt that is empty or padded elsewhere; names the row.
  """
  module, params, batch = model.decoding(prompts(model, given, True))
  eos, pad = decoding.ends(model)
  rng = jax.random.key(0)
  ids = generation.generate(
    module, params, batch, rng, max_new_tokens=max_new_tokens, eos=eos, pad=pad
  )
  return decoding.trim(np.asarray(ids), eos)


def prompts(model: Any, given: Mapping[str, Any], last: bool) -> Batch:
  """The batch of PaliGemma's inputs, which reads every position of the text, or the last real one.

  Raises:
    ValueError: see `greedy`.
  """
  batch, count, real = _prompt(model, given)
  if not last:
    return batch
  ends = real.sum(axis=1)
  wrong = (real != (np.arange(real.shape[1]) < ends[:, None])).any(axis=1) | (ends == 0)
  if wrong.any():
    row = int(wrong.argmax())
    raise ValueError(f"input_mask row {row} is not 1 for a prompt, then 0 for padding on its right")
  read = (count + ends - 1).astype(np.int32)[:, None]
  return batch.replace(text=batch.text.replace(read=read))


def labels(given: Mapping[str, np.ndarray]) -> np.ndarray:
  """What is to be predicted [B, T], -100 where nothing is."""
  return np.where(given["mask_loss"] > 0, given["text"], -100)


def processor(model: Any) -> bigvision.base.Processor | None:
  """What prepares pictures and texts as big_vision does; None without the file of a tokeniser.

  SigLIP's pictures are resized without antialias, PaliGemma's with. A ViT alone needs no tokeniser;
  its pictures are SigLIP's, whatever it was evaluated with.

  Raises:
    ValueError: a damaged tokeniser, or several.
  """
  module, kind = model.module, model.system.inputs
  folder, encoder = model.npz.path.parent, module.encoders["image"]
  if encoder.resizes:
    pixels = bigvision.NaFlex(patch=encoder.patch, name="NaFlex")
  else:
    height, width = model.system.image_size
    size = {"height": height, "width": width}
    pixels = bigvision.Squeezed(size, antialias=kind == "bv_paligemma", name="resize")
  if kind == "bv_paligemma":
    return bigvision.paligemma(pixels, folder, module.decoder.vocab)
  if kind == "bv_vit":
    return bigvision.base.Processor(bigvision.base.Parts(pixels))
  text, name = module.text, model.npz.config.get("tokenizer")
  return bigvision.two_towers(pixels, folder, name, text.vocab, text.length)


BATCHES = {"bv_paligemma": prompts}
KINDS = {"bv_vit": vit, "bv_two_towers": two_towers, "bv_paligemma": paligemma}
GENERATORS = {"bv_paligemma": greedy}
