"""Reader of pictures of any shape that are padded to one, with a mask of their pixels."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.hub.media import Picture, Reader
from bigvlm.layers import posemb
from bigvlm.types import Item

BUCKET = 8  # Patches: sides of grids that may be filled up are multiples of it.


def padded(model: Any, given: Mapping[str, np.ndarray]) -> list[Picture]:
  """`pixel_values` [B, n, 3, H, W], in which a picture that is all zeros is none.

  `pixel_attention_mask` [B, n, H, W] has 0 for padding. A patch is padding when all of its pixels
  are or, with `options["whole_patches"]`, when one is; the connector does not read padding then,
  and grids are filled up to a multiple of `BUCKET` patches, so that few shapes are compiled. With
  `options["one_image"]` the first picture is one if no other is.

  Raises:
    ValueError: arrays of other shapes, or a picture without a patch in its first row and column.
  """
  if "pixel_values" not in given:
    return []
  x, encoder, options = given["pixel_values"], model.module.encoders["image"], model.system.options
  if x.ndim != 5 or x.shape[2] != 3:
    raise ValueError(f"pixel_values must be [B, n, 3, H, W], not {list(x.shape)}")
  rows, count, _, height, width = x.shape
  (h, w), p = encoder.grid(height, width), encoder.patch
  masks = given.get("pixel_attention_mask", np.ones((rows, count, height, width), bool))
  if masks.shape != (rows, count, height, width):
    want = [rows, count, height, width]
    raise ValueError(f"pixel_attention_mask must be {want}, not {list(masks.shape)}")
  x = x.reshape(rows * count, 3, height, width)
  real = x.any(axis=(1, 2, 3))
  if options.get("one_image") and real.size and not real.any():
    real[0] = True
  masks = masks.reshape(rows * count, height, width)[real, : h * p, : w * p] > 0
  masks = masks.reshape(-1, h, p, w, p)
  seen = masks.all(axis=(2, 4)) if options.get("whole_patches") else masks.any(axis=(2, 4))
  x, whole = x[real, :, : h * p, : w * p], seen.all()
  if options.get("whole_patches"):
    below, right = -h % BUCKET, -w % BUCKET
    x = np.pad(x, ((0, 0), (0, 0), (0, below * p), (0, right * p)))
    seen, whole = np.pad(seen, ((0, 0), (0, below), (0, right))), False
  item = Item(0, (1, *seen.shape[1:]), size=(height, width))
  out = []
  for number, (one, patches) in enumerate(zip(x, seen, strict=True)):
    pixels = np.ascontiguousarray(one.transpose(1, 2, 0), np.float32)[None]
    pos = {} if whole else {"image": _places(encoder, patches, number)[None]}
    out.append(Picture({"image": pixels}, item, options["image_token"], pos))
  return out


def _places(encoder: Any, seen: np.ndarray, number: int) -> np.ndarray:
  """`Media.pos` of a picture, int32 [h * w, 2], whose patches bool [h, w] are padding if False."""
  high, wide = int(seen[:, 0].sum()), int(seen[0].sum())
  if not high or not wide:
    raise ValueError(f"pixel_attention_mask of picture {number} has no patch at its top and left")
  sides = zip((high, wide), encoder.table, seen.shape, strict=True)
  y, x = (posemb.buckets(n, size, length) for n, size, length in sides)
  pos = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)
  return np.where(seen[..., None], pos, -1).reshape(-1, 2).astype(np.int32)


READERS = {"padded": Reader(("pixel_values", "pixel_attention_mask"), padded)}
