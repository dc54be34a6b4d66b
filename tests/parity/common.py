"""What every parity recipe shares: models of the reference with nothing left at its default."""

from typing import Any

import numpy as np


def randomise(model: Any, seed: int, scale: float = 0.2) -> Any:
  """Draws every parameter of a torch model; norms around 1, so that all of them matter.

  Gives the model back in float32, for inference.
  """
  import torch

  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, p in model.named_parameters():
      value = torch.randn(p.shape, generator=generator) * scale
      # A matrix keeps the size of what it maps; its inputs are its last axes.
      if p.ndim > 1:
        value *= min(1.0, 2.0 / np.sqrt(np.prod(p.shape[1:])) / scale)
      elif "norm" in name and name.endswith("weight"):
        value += 1.0
      p.copy_(value)
  return model.float().eval()


def pixels(rng: np.random.Generator, *shape: int) -> np.ndarray:
  """float32 pixels about 0, of size about 1."""
  return rng.standard_normal(shape).astype(np.float32)


def padding(rng: np.random.Generator, rows: int, length: int, side: str) -> np.ndarray:
  """int64 [rows, length] attention mask, the first row whole, the others padded on a side."""
  mask = np.ones((rows, length), np.int64)
  for row in range(1, rows):
    n = int(rng.integers(1, length // 2))
    if side == "left":
      mask[row, :n] = 0
    else:
      mask[row, length - n :] = 0
  return mask
