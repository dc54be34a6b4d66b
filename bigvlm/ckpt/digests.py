"""Digests of tensors, tile by tile, on a grid that knows nothing of the mesh.

Every tensor is cut into tiles by its shape and item size alone (`grid`). The digest of
a tile is xxh3_64 of its elements in C order, so equal values have equal digests
however they were sharded when they were saved. The process that holds a tile (the
shards with replica 0) hashes it; a tile that lies across processes is handed to
process 0 as pieces, through a file beside the manifest, and hashed there.

A box is a tuple of (start, stop) pairs, one an axis, in the coordinates of the whole
tensor. Pieces are a dict from box to the array of that box; they do not overlap.
"""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

FORMAT = 1
MANIFEST = "manifest.json"
# Tiles are about 1 MiB (they stay in the cache between the gather and the hash). An axis
# is cut into at most 8 for that, so that the shards of up to 8 processes hold whole
# tiles; tensors too large for 8 x 8 x ... are cut further, leading axis first.
_TILE_BYTES = 1 << 20
_AXIS_PARTS = 8
_LARGE_BYTES = 4 << 20

Box = tuple[tuple[int, int], ...]
Pieces = Mapping[Box, np.ndarray]


def grid(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
  """How many tiles each axis has; powers of two. Depends on nothing but the arguments.

  Part i of an axis of n cut into p is [i * n // p, (i + 1) * n // p), so any even
  sharding over p or fewer (a power of two) has its borders on tile borders.
  """
  parts = [1] * len(shape)
  nbytes = math.prod(shape) * itemsize

  def cut(axis: int, tile_bytes: int, most: int):
    while parts[axis] * 2 <= min(shape[axis], most) and nbytes > tile_bytes * math.prod(parts):
      parts[axis] *= 2

  for axis in sorted(range(len(shape)), key=lambda a: -shape[a]):
    cut(axis, _TILE_BYTES, _AXIS_PARTS)
  for axis in range(len(shape)):
    cut(axis, _LARGE_BYTES, shape[axis])
  return tuple(parts)


def box_of(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
  """The box of a shard's index (slices whose ends may be None)."""
  return tuple(
    (0 if s.start is None else int(s.start), n if s.stop is None else int(s.stop))
    for s, n in zip(index, shape, strict=True)
  )


def tile_box(shape: tuple[int, ...], parts: tuple[int, ...], tile: int) -> Box:
  """The box of tile number `tile`; tiles are numbered in C order."""
  at = np.unravel_index(tile, parts) if parts else ()
  return tuple(
    (int(i) * n // p, (int(i) + 1) * n // p) for i, n, p in zip(at, shape, parts, strict=True)
  )


def hash_bytes(data: np.ndarray | bytes) -> str:
  """xxh3_64 of the bytes in C order, 16 hexadecimal digits."""
  import xxhash

  if isinstance(data, np.ndarray):
    data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
  return xxhash.xxh3_64_hexdigest(data)


def _tiles_in(shape: tuple[int, ...], parts: tuple[int, ...], box: Box) -> Iterable[int]:
  """Numbers of the tiles that share elements with `box`."""
  ranges = []
  for (start, stop), n, p in zip(box, shape, parts, strict=True):
    first = start * p // n
    while (first + 1) * n // p <= start:
      first += 1
    last = first
    while last + 1 < p and (last + 1) * n // p < stop:
      last += 1
    ranges.append(range(first, last + 1))
  for at in itertools.product(*ranges):
    yield int(np.ravel_multi_index(at, parts)) if parts else 0


def _common(a: Box, b: Box) -> Box:
  return tuple((max(x, u), min(y, v)) for (x, y), (u, v) in zip(a, b, strict=True))


def _slices(box: Box, origin: Box) -> tuple[slice, ...]:
  return tuple(slice(a - o, b - o) for (a, b), (o, _) in zip(box, origin, strict=True))


def _volume(box: Box) -> int:
  return math.prod(b - a for a, b in box)


def whole_tiles(shape: tuple[int, ...], parts: tuple[int, ...], boxes: Iterable[Box]) -> bool:
  """Whether `boxes` (which do not overlap) cover each tile that they touch."""
  covered: dict[int, int] = {}
  for box in boxes:
    for tile in _tiles_in(shape, parts, box):
      common = _common(box, tile_box(shape, parts, tile))
      covered[tile] = covered.get(tile, 0) + _volume(common)
  return all(v == _volume(tile_box(shape, parts, tile)) for tile, v in covered.items())


def hash_tiles(
  shape: tuple[int, ...], dtype: np.dtype, pieces: Pieces, wanted: set[int] | None = None
) -> tuple[dict[int, str], list[tuple[int, Box, np.ndarray]]]:
  """Digests of the tiles that `pieces` cover.

  Args:
    shape: shape of the whole tensor.
    dtype: its dtype.
    pieces: what is here of it.
    wanted: numbers of the tiles to look at; None = all.

  Returns:
    Digest by tile number, and the parts (tile, box, array) of tiles covered in part only.
  """
  parts = grid(shape, dtype.itemsize)
  holders: dict[int, list[Box]] = {}
  for box in pieces:
    for tile in _tiles_in(shape, parts, box):
      if wanted is None or tile in wanted:
        holders.setdefault(tile, []).append(box)
  done, rest = {}, []
  for tile, boxes in holders.items():
    whole = tile_box(shape, parts, tile)
    found = [(_common(whole, box), box) for box in boxes]
    if sum(_volume(common) for common, _ in found) != _volume(whole):
      rest.extend((tile, c, pieces[box][_slices(c, box)]) for c, box in found)
    elif len(found) == 1:
      done[tile] = hash_bytes(pieces[boxes[0]][_slices(whole, boxes[0])])
    else:
      out = np.empty([b - a for a, b in whole], dtype)
      for common, box in found:
        out[_slices(common, whole)] = pieces[box][_slices(common, box)]
      done[tile] = hash_bytes(out)
  return done, rest


def write_process(
  directory: Any, process: int, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype, Pieces]]
) -> None:
  """Writes what one process knows: `process_I.json`, and `process_I.bin` with parts of tiles.

  Args:
    directory: an existing folder (pathlib or epath).
    process: number of this process.
    tensors: name to (shape, dtype, the pieces that this process owns).
  """
  digests, index, blobs, offset = {}, [], [], 0
  for name, (shape, dtype, pieces) in tensors.items():
    done, rest = hash_tiles(shape, dtype, pieces)
    digests[name] = done
    for tile, box, array in rest:
      data = np.ascontiguousarray(array).tobytes()
      index.append([name, tile, box, offset, len(data)])
      blobs.append(data)
      offset += len(data)
  if blobs:
    (directory / f"process_{process}.bin").write_bytes(b"".join(blobs))
  text = json.dumps({"digests": digests, "parts": index})
  (directory / f"process_{process}.json").write_text(text)


def merge(
  directory: Any,
  processes: int,
  specs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  step: int,
  meta: dict,
) -> None:
  """Makes the one manifest of a checkpoint from the files of all processes, and removes those.

  Raises:
    RuntimeError: some tile was hashed by nobody.
  """
  found: dict[str, dict[int, str]] = {name: {} for name in specs}
  partial: dict[tuple[str, int], dict[Box, np.ndarray]] = {}
  for i in range(processes):
    own = json.loads((directory / f"process_{i}.json").read_text())
    for name, digests in own["digests"].items():
      found[name].update({int(tile): digest for tile, digest in digests.items()})
    blob = (directory / f"process_{i}.bin").read_bytes() if own["parts"] else b""
    for name, tile, box, offset, nbytes in own["parts"]:
      box = tuple(map(tuple, box))
      data = np.frombuffer(blob[offset : offset + nbytes], specs[name][1])
      partial.setdefault((name, tile), {})[box] = data.reshape([b - a for a, b in box])
  for (name, tile), pieces in partial.items():
    found[name].update(hash_tiles(*specs[name], pieces, {tile})[0])
  tensors = {}
  for name, (shape, dtype) in specs.items():
    parts = grid(shape, dtype.itemsize)
    missing = [t for t in range(math.prod(parts)) if t not in found[name]]
    if missing:
      raise RuntimeError(f"no process has hashed tile {missing[0]} of tensor {name!r}")
    tensors[name] = {
      "dtype": dtype.name,
      "shape": shape,
      "tiles": parts,
      "xxh3_64": "".join(found[name][t] for t in range(math.prod(parts))),
    }
  manifest = {"format": FORMAT, "step": step, "meta": meta, "tensors": tensors}
  manifest["digest"] = _self_digest(manifest)
  (directory / MANIFEST).write_text(json.dumps(manifest))
  for i in range(processes):
    (directory / f"process_{i}.json").unlink()
    (directory / f"process_{i}.bin").unlink(missing_ok=True)


def _self_digest(manifest: dict) -> str:
  text = json.dumps({k: v for k, v in manifest.items() if k != "digest"}, sort_keys=True)
  return hash_bytes(text.encode())


def read(path: Any) -> dict:
  """The manifest at `path`.

  Raises:
    ValueError: the file is no manifest, or is not as it was written.
  """
  try:
    manifest = json.loads(path.read_text())
    good = manifest["digest"] == _self_digest(manifest)
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} is damaged ({error})") from None
  if not good:
    raise ValueError(f"{path} is damaged (it does not match its own digest)")
  if manifest["format"] != FORMAT:
    raise ValueError(f"{path} has format {manifest['format']}; this code reads {FORMAT}")
  return manifest


def chosen(entry: dict, name: str, share: float) -> set[int]:
  """Tiles of one tensor to verify: all of them, or a sample that is the same in every process."""
  count = math.prod(entry["tiles"])
  if share >= 1:
    return set(range(count))
  seed = int(hash_bytes((name + entry["xxh3_64"]).encode()), 16)
  rng = np.random.default_rng(seed)
  return set(rng.choice(count, max(1, round(count * share)), replace=False).tolist())


def differing(entry: dict, pieces: Pieces, tiles: set[int]) -> list[int]:
  """Numbers of those of `tiles` that `pieces` cover and whose digest is not the recorded one."""
  shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
  done, _ = hash_tiles(shape, dtype, pieces, tiles)
  want = entry["xxh3_64"]
  return sorted(t for t, digest in done.items() if digest != want[16 * t : 16 * t + 16])
