"""Pictures that several encoders see, each in an input of its own."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.hub import media
from bigvlm.types import Item

# Encoder -> its input.
INPUTS = {"image": "pixel_values", "fine": "high_res_pixel_values"}


def paired(model: Any, given: Mapping[str, np.ndarray]) -> list[media.Picture]:
  """`pixel_values` [n, 3, H, W] and `high_res_pixel_values` [n, 3, H', W'] of the same pictures.

  Raises:
    ValueError: one without the other, or not as many.
  """
  x = {e: media.channels_last(given[k], k) for e, k in INPUTS.items() if k in given}
  if not x:
    return []
  if len(x) < len(INPUTS) or len({len(pixels) for pixels in x.values()}) > 1:
    found = ", ".join(f"{INPUTS[e]} of {len(pixels)} pictures" for e, pixels in x.items())
    raise ValueError(f"{' and '.join(INPUTS.values())} belong together; the inputs have {found}")
  size = x["image"].shape[1:3]
  item = Item(0, (1, *model.module.encoders["image"].grid(*size)), size=size)
  token = model.system.options["image_token"]
  count = len(x["image"])
  return [
    media.Picture({e: pixels[n : n + 1] for e, pixels in x.items()}, item, token)
    for n in range(count)
  ]
