"""Files of a checkpoint directory: tensors with their digests, and what lies beside them."""

import json
import os
import pathlib
import re
from collections.abc import Collection, Mapping

import numpy as np
import xxhash

from bigvlm.ckpt.sources import Source
from bigvlm.utils import jsons

DIGESTS = "digests.json"
_SHARD = 5 * 10**9  # Bytes of tensors in a file, as the hub has them.
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_COMPANIONS = (
  "generation_config.json",
  "preprocessor_config.json",
  "processor_config.json",
  "video_preprocessor_config.json",
  "tokenizer.model",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "vocab.txt",
  "merges.txt",
  "spiece.model",
  "sentencepiece.bpe.model",
  "chat_template.jinja",
  "chat_template.json",
)


def companions(directory: pathlib.Path) -> list[pathlib.Path]:
  """The tokenizer, preprocessor and generation files of a directory."""
  return [directory / name for name in _COMPANIONS if (directory / name).is_file()]


def publish(staged: pathlib.Path, target: pathlib.Path) -> None:
  """Moves a finished file into place, readable as any new file (temporary ones are private)."""
  mask = os.umask(0)
  os.umask(mask)
  os.chmod(staged, 0o666 & ~mask)
  os.replace(staged, target)


def clear(directory: pathlib.Path, written: Collection[str]) -> None:
  """Removes the weights that lay in a directory before: the index first, then shards or the file.

  Args:
    directory: of a checkpoint. written: names of the files that are of it now.
  """
  index = directory / "model.safetensors.index.json"
  for file in (index, *sorted(directory.glob("model*.safetensors"))):
    ours = file == index or _WEIGHTS.fullmatch(file.name)
    if ours and file.name not in written:
      file.unlink(missing_ok=True)


def digest(x: np.ndarray) -> str:
  """xxh3 of a tensor's bytes."""
  return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(x).view(np.uint8).reshape(-1))


def write_tensors(
  tensors: Mapping[str, np.ndarray], directory: pathlib.Path, shard: int = _SHARD
) -> None:
  """Writes `model.safetensors`, or shards and their index, and the digests of the tensors."""
  from safetensors.numpy import save_file

  shards, size = [{}], 0
  for name, x in tensors.items():
    if shards[-1] and size + x.nbytes > shard:
      shards.append({})
      size = 0
    shards[-1][name] = x
    size += x.nbytes
  names = ["model.safetensors"]
  if len(shards) > 1:
    names = [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    index = {
      "metadata": {"total_size": sum(x.nbytes for x in tensors.values())},
      "weight_map": {k: n for n, part in zip(names, shards, strict=True) for k in part},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")
  for name, part in zip(names, shards, strict=True):
    save_file(part, directory / name, metadata={"format": "pt"})
  digests = {k: digest(x) for k, x in tensors.items()}
  (directory / DIGESTS).write_text(json.dumps(digests, indent=1), "utf-8")


def verify(source: Source, directory: pathlib.Path, how: str) -> None:
  """Compares tensors with `digests.json`, where there is one.

  Args:
    source: the tensors. directory: that they lie in.
    how: "full", "sample" (a tenth of the tensors, by their names) or "off".

  Raises:
    ValueError: a tensor whose bytes changed since it was written.
  """
  path = directory / DIGESTS
  if how not in ("full", "sample", "off"):
    raise ValueError(f"verify is full, sample or off, not {how!r}")
  if how != "off" and hasattr(source, "check"):
    source.check(how)
  if how == "off" or not path.is_file():
    return
  for name, wanted in jsons.read(path).items():
    if name not in source.specs():
      raise ValueError(f"{path} names {name}, which is not in {source.path}")
    if how == "sample" and xxhash.xxh3_64_intdigest(name) % 10:
      continue
    if digest(source.read(name)) != wanted:
      raise ValueError(f"{source.path}: the bytes of {name} changed since it was written")
