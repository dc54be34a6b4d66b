"""A reader of patches that say nothing of their pictures: placeholders take them in order."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.hub.media import Picture, Reader
from bigvlm.types import Item


def flat(model: Any, given: Mapping[str, np.ndarray]) -> list[Picture]:
  """`pixel_values` [..., P * P * 3], also called `image_patches`: what the placeholders of each row
  take is one picture. `image_patches_indices` [B, T] may say which patch goes where.

  Raises:
    ValueError: patches of another size, not as many as placeholders, or not in their order.
  """
  options, side = model.system.options, model.module.encoders["image"].patch
  x = given.get("pixel_values", given.get("image_patches"))
  if x is None:
    return []
  if x.ndim < 2 or x.shape[-1] != 3 * side**2:
    raise ValueError(f"pixel_values must be [N, {3 * side**2}] patches, not {list(x.shape)}")
  x = np.asarray(x, np.float32).reshape(-1, x.shape[-1])
  holes = given["input_ids"] == options["image_token"]
  counts = holes.sum(axis=1)
  if counts.sum() != len(x):
    raise ValueError(f"input_ids has {counts.sum()} image placeholders for {len(x)} patches")
  indices = given.get("image_patches_indices")
  if indices is not None:
    there = np.where(holes, np.cumsum(holes, axis=1) - 1, -1)
    if indices.shape != there.shape or (indices != there).any():
      raise ValueError("image_patches_indices must number the image placeholders of each row")
  parts = np.split(x, np.cumsum(counts)[:-1])
  token = options["image_token"]
  return [Picture({"image": p}, Item(0, (1, 1, len(p))), token) for p in parts if len(p)]


READERS = {"flat": Reader(("pixel_values", "image_patches", "image_patches_indices"), flat)}
