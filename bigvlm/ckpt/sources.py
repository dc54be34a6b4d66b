"""Checkpoint files of others as flat tables of tensors, read slice by slice.

No pickle is ever opened: `.bin`, `.pt` and `.npz` files with objects are refused.
"""

import math
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from bigvlm.utils import jsons

_DTYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E5M2": ml_dtypes.float8_e5m2,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U8": np.uint8,
  "BOOL": np.bool_,
}
# Size of the fixed part of a zip member's header; its last four bytes are two lengths.
_LOCAL = 30
_READ = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
_ROWS = 8192  # Of two tensors, compared at a time.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Spec(NamedTuple):
  """Shape and NumPy dtype of a stored tensor."""

  shape: tuple[int, ...]
  dtype: np.dtype


def spec(kind: str, shape: Sequence[int], file: Any, key: str) -> Spec:
  """The spec of a tensor whose dtype a safetensors file calls `kind`.

  Raises:
    ValueError: a dtype that NumPy and ml_dtypes do not have; names the file and the tensor.
  """
  if kind not in _DTYPES:
    raise ValueError(f"{file}: tensor {key} has dtype {kind}, which is not supported")
  return Spec(tuple(shape), np.dtype(_DTYPES[kind]))


class Source(Protocol):
  """Tensors by name."""

  path: pathlib.Path

  def specs(self) -> Mapping[str, Spec]:
    """Every tensor there is."""

  def read(self, key: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """A tensor or a slice of it, in its stored dtype."""


class Safetensors:
  """One `.safetensors` file, or a folder's `model.safetensors` or its shards by their index.

  Raises:
    FileNotFoundError: none there. ValueError: a file that is cut short or no safetensors file, or
      pickles only.
  """

  def __init__(self, path: str | pathlib.Path):
    self.path = pathlib.Path(path)
    self._files = {}
    self._specs = {}
    for file in _shards(self.path):
      handle = _open(file)
      for key in handle.keys():  # noqa: SIM118 (no mapping)
        part = handle.get_slice(key)
        self._files[key] = handle
        self._specs[key] = spec(part.get_dtype(), part.get_shape(), file, key)

  def specs(self) -> Mapping[str, Spec]:
    """Every tensor there is."""
    return self._specs

  def read(self, key: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """A tensor or a slice of it; only the slice's pages are read from the disk."""
    if not index or not self._specs[key].shape:
      return np.asarray(self._files[key].get_tensor(key))
    return np.asarray(self._files[key].get_slice(key)[tuple(index)])


class Npz:
  """A `.npz` file of big_vision; bfloat16 arrays, which NumPy stores as |V2, come back as such."""

  def __init__(self, path: str | pathlib.Path):
    self.path = pathlib.Path(path)
    try:
      self._file = np.load(self.path, allow_pickle=False)
      if not isinstance(self._file, np.lib.npyio.NpzFile):
        raise ValueError("it holds a single array")
      self._specs = {key: self._header(key) for key in self._file.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, KeyError) as e:
      if isinstance(e, FileNotFoundError):
        raise
      raise ValueError(f"{self.path} is not a whole .npz file of plain arrays: {e}") from e

  def specs(self) -> Mapping[str, Spec]:
    """Every array there is."""
    return self._specs

  def read(self, key: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """An array or a slice of it; of an array that is not compressed only the slice is read."""
    member = self._file.zip.getinfo(f"{key}.npy")
    spec = self._specs[key]
    if member.compress_type != zipfile.ZIP_STORED or not math.prod(spec.shape):
      return self._file[key].view(spec.dtype)[tuple(index)]
    with open(self.path, "rb") as f:
      _, fortran, _ = _at(f, member)
      at = f.tell()
    order = "F" if fortran else "C"
    found = np.memmap(self.path, spec.dtype, "r", at, spec.shape or (1,), order)
    return np.array(found[tuple(index)] if spec.shape else found[0])

  def check(self, how: str) -> None:
    """Compares the checksums of all arrays ("full") or a tenth of them ("sample").

    Raises:
      ValueError: an array whose bytes changed since the file was written; names it.
    """
    for n, member in enumerate(self._file.zip.infolist()):
      if how == "sample" and n % 10:
        continue
      try:
        with self._file.zip.open(member) as f:
          while f.read(1 << 24):
            pass
      except (zipfile.BadZipFile, zlib.error, EOFError) as e:
        name = member.filename.removesuffix(".npy")
        raise ValueError(f"{self.path}: the bytes of {name} changed since it was written") from e

  def _header(self, key: str) -> Spec:
    member = self._file.zip.getinfo(f"{key}.npy")
    if member.compress_type == zipfile.ZIP_STORED:
      with open(self.path, "rb") as f:
        shape, _, dtype = _at(f, member)
    else:
      with self._file.zip.open(member) as f:
        shape, _, dtype = _READ[np.lib.format.read_magic(f)](f)
    if dtype.hasobject:
      raise ValueError(
        f"{key} is a pickled object; save plain arrays with np.savez(file, **flat_dict)"
      )
    return Spec(shape, np.dtype(ml_dtypes.bfloat16) if dtype.str == "|V2" else dtype)


def _at(f: Any, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype]:
  """Shape, order and dtype of a member that is not compressed; `f` is left where its data begins.

  Its checksum is not compared (see `Npz.check`).
  """
  # The name and its extra field lie between the fixed part of the member's header and its data.
  f.seek(member.header_offset + _LOCAL - 4)
  f.seek(sum(struct.unpack("<HH", f.read(4))), 1)
  return _READ[np.lib.format.read_magic(f)](f)


def same(source: Source, a: str, b: str) -> bool:
  """Whether two tensors have the same bytes; both are read part by part, until they differ."""
  if hasattr(source, "same"):
    return source.same(a, b)
  specs = source.specs()
  if specs[a] != specs[b]:
    return False
  count = specs[a].shape[0] if specs[a].shape else 1
  for start in range(0, count, _ROWS):
    rows = (slice(start, min(start + _ROWS, count)),) if specs[a].shape else ()
    if source.read(a, rows).tobytes() != source.read(b, rows).tobytes():
      return False
  return True


def open_source(path: str | pathlib.Path) -> Source:
  """The source that lies at a path: `.npz`, `.safetensors`, or a folder with one of them.

  Raises:
    FileNotFoundError: nothing there. ValueError: pickles, or files that are damaged.
  """
  path = pathlib.Path(path)
  if path.is_dir() and not any(path.glob("*.safetensors*")) and (path / "model.npz").is_file():
    path = path / "model.npz"
  return Npz(path) if path.suffix == ".npz" else Safetensors(path)


def _shards(path: pathlib.Path) -> list[pathlib.Path]:
  if path.suffix in _PICKLES:
    raise ValueError(_pickled(path))
  if path.is_file():
    return [path]
  if not path.exists():
    raise FileNotFoundError(f"no checkpoint at {path}")
  # Of both transformers reads the one file.
  if (path / "model.safetensors").is_file():
    return [path / "model.safetensors"]
  index = path / "model.safetensors.index.json"
  if index.is_file():
    places = jsons.read(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
      raise ValueError(f"{index} has no weight_map of tensors and files")
    names = sorted(set(places.values()))
    missing = [n for n in names if not (path / n).is_file()]
    if missing:
      raise FileNotFoundError(f"{index} names {missing[0]}, which is not in {path}")
    return [path / n for n in names]
  pickles = [f for suffix in _PICKLES for f in sorted(path.glob(f"*{suffix}"))]
  if pickles:
    raise ValueError(_pickled(pickles[0]))
  raise FileNotFoundError(f"{path} holds no model.safetensors, no index of shards and no model.npz")


def _pickled(path: pathlib.Path) -> str:
  return (
    f"{path} is a pickle, which can run code and is never opened. Convert it once with torch: "
    'python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous().clone() for '
    f"k, v in torch.load('{path.name}', weights_only=True).items()}}, 'model.safetensors')\""
  )


def _open(file: pathlib.Path):
  from safetensors import SafetensorError, safe_open

  try:
    return safe_open(file, framework="numpy")
  except SafetensorError as e:
    raise ValueError(f"{file} is damaged or no safetensors file: {e}") from e
