"""Weights of fixtures, drawn again instead of stored: a checkpoint is a table of names and shapes.

A tensor is a function of a seed and a name, the same on every machine and version: integers of
NumPy's frozen `RandomState`, summed and scaled.
"""

import json
import pathlib
import zlib

import numpy as np
from safetensors.numpy import load_file, save_file

TABLE, REST, FILE = "tensors.json", "rest.safetensors", "model.safetensors"


def draw(name: str, shape: tuple[int, ...], seed: int, scale: float = 0.2) -> np.ndarray:
  """float32 values of a parameter of the reference, about normal; norms are around 1.

  A matrix keeps the size of what it maps; its inputs are its last axes.
  """
  rng = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode()))
  # Sums of four uniform numbers have a deviation of 2 ** 16 / sqrt(3).
  x = rng.randint(-(2**15), 2**15, size=(4, *shape)).sum(axis=0) * (3**0.5 / 2**16)
  x *= scale if len(shape) < 2 else min(scale, 2.0 / np.sqrt(np.prod(shape[1:])))
  if len(shape) == 1 and "norm" in name and name.endswith("weight"):
    x += 1.0
  return np.asarray(x, np.float32)


def reduce(folder: pathlib.Path, parameters: dict[str, np.ndarray], seed: int) -> None:
  """Replaces a checkpoint by its table, and a file of those tensors that were not drawn.

  Args:
    folder: with `model.safetensors`.
    parameters: of the model it was written from, by the names they were drawn for.
    seed: of those draws.
  """
  known = {}
  for name, x in parameters.items():
    if np.array_equal(x, draw(name, x.shape, seed)):
      known[x.shape, x.tobytes()] = name
  table, rest = {}, {}
  for name, x in load_file(folder / FILE).items():
    source = known.get((x.shape, x.tobytes()))
    if source is None:
      rest[name] = x
    else:
      table[name] = [source, list(x.shape)]
  lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in table.items())
  (folder / TABLE).write_text(f'{{"seed": {seed}, "tensors": {{\n{lines}\n}}}}\n')
  (folder / REST).unlink(missing_ok=True)
  if rest:
    save_file(rest, folder / REST)
  (folder / FILE).unlink()


def restore(folder: pathlib.Path) -> None:
  """Writes the checkpoint of a table, where it is not there or older."""
  file, table = folder / FILE, folder / TABLE
  if file.exists() and file.stat().st_mtime >= table.stat().st_mtime:
    return
  made = json.loads(table.read_text())
  found = {k: draw(name, tuple(s), made["seed"]) for k, (name, s) in made["tensors"].items()}
  if (folder / REST).exists():
    found |= load_file(folder / REST)
  part = folder / f"{FILE}.part"
  save_file(found, part, metadata={"format": "pt"})
  part.replace(file)


def restore_all(root: pathlib.Path) -> None:
  """`restore` of every folder under a root."""
  for table in sorted(root.rglob(TABLE)):
    restore(table.parent)
