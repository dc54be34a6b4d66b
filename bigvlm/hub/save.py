"""Writing a model as a directory that transformers loads."""

import json
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import numpy as np

from bigvlm.ckpt import transfer
from bigvlm.hub import describe, fields, files


def save(model: Any, directory: str | pathlib.Path, dtype: str | None) -> None:
  """Writes the files of a `HubModel`; each appears whole or not at all.

  Args:
    model: what was loaded from a directory is written in its form; anything else is described
      anew, in the hub's names.
    directory: made if it is not there.
    dtype: of the floating tensors; None = as in the files.

  Raises:
    ValueError: a model that transformers has no class for, or a dtype that parameters cannot have.
  """
  dtype = fields.cast(dtype)
  config, system, origin = model.json, model.system, model.origin
  if config is None:
    stored = dtype or str(np.dtype(jax.tree.leaves(model.params)[0].dtype))
    config, system = describe.describe(
      model.config["model"], system.image_size, system.text_len, stored, system.options
    )
    origin = None
  elif system.image_size is not None and system.image_size != model.loaded_size:
    patch = next(iter(model.module.encoders.values())).patch
    config = fields.with_size(config, system.image_size, patch)
  if dtype is not None:
    config = config | {"torch_dtype" if "torch_dtype" in config else "dtype": str(np.dtype(dtype))}
  tensors = transfer.export(system.map, model.params, origin, dtype=dtype)
  target = pathlib.Path(directory)
  target.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=target, prefix=".writing-") as staging:
    staged = pathlib.Path(staging)
    files.write_tensors(tensors, staged)
    if model.directory is not None and target.resolve() != model.directory.resolve():
      for file in files.companions(model.directory):
        shutil.copy2(file, staged / file.name)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (staged / "config.json").write_text(text, "utf-8")
    # Tensors first: until the indices are there a reader finds the old model or none.
    written = sorted(staged.iterdir(), key=lambda f: (f.suffix == ".json", f.name))
    for file in written:
      files.publish(file, target / file.name)
  files.clear(target, {file.name for file in written})
