"""What every parity recipe shares: models of the reference with nothing left at its default."""

from typing import Any

import numpy as np

from tests.parity import weights


def randomise(model: Any, seed: int, scale: float = 0.2) -> Any:
  """Draws every parameter of a torch model (see `weights.draw`).

  Gives the model back in float32, for inference.
  """
  import torch

  with torch.no_grad():
    for name, p in model.named_parameters():
      p.copy_(torch.from_numpy(weights.draw(name, tuple(p.shape), seed, scale)))
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
