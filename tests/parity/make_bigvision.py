"""Makes the small checkpoints of tests/fixtures/bigvision, with big_vision's own code.

Usage: BIG_VISION=CHECKOUT python -m tests.parity.make_bigvision [--live] [NAME ...]

The tests need neither the checkout nor what it needs. With `--live` nothing is written: fresh
checkpoints of other seeds and sizes are loaded, run and written back, and compared; exit code 1
when anything is beyond its bound.
"""

import json
import pathlib
import shutil
import sys
import tempfile
import time

import numpy as np

from tests.parity.recipes_bigvision import RECIPES

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "bigvision"
BOUND = 1e-5


def make(name: str, folder: pathlib.Path, seed: int = 0) -> None:
  """Writes the checkpoint of one recipe: `config.json`, `model.npz` and `io.npz`."""
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  config, params, io = RECIPES[name](seed)
  (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
  np.savez(folder / "model.npz", **params)
  np.savez_compressed(folder / "io.npz", **io)


def check(folder: pathlib.Path) -> tuple[dict[str, float], bool, bool]:
  """Loads a checkpoint and compares it with what was recorded.

  Returns:
    Errors by output, max|ours - theirs| / max|theirs|; whether the greedy ids are equal (True where
    there are none); whether the file comes back byte for byte.
  """
  import bigvlm

  model = bigvlm.load(folder)
  io = dict(np.load(folder / "io.npz"))
  given = {k[3:]: v for k, v in io.items() if k.startswith("in_")}
  out = model.forward_hf(given)
  errors = {}
  for key in (k[4:] for k in io if k.startswith("out_")):
    ours, theirs = out[key], io[f"out_{key}"]
    if key == "image_features":  # Leading axes flattened.
      theirs = theirs.reshape(-1, theirs.shape[-1])
    if key == "img_encoded" and "ptype" in given:  # Padding is nothing.
      ours = ours * (given["ptype"] == 1)[:, :, None]
    same = ours.shape == theirs.shape
    errors[key] = float(np.abs(ours - theirs).max() / np.abs(theirs).max()) if same else np.inf
  equal = True
  if "ids" in io:
    prompt = given | {"mask_ar": np.zeros_like(given["mask_ar"])}
    ids = model.generate_hf(prompt, max_new_tokens=int(io["count"]))
    rest = io["ids"][:, ids.shape[1] :]
    equal = np.array_equal(ids, io["ids"][:, : ids.shape[1]]) and not rest.any()
  with tempfile.TemporaryDirectory() as target:
    file = pathlib.Path(target) / "model.npz"
    model.save_npz(file)
    exact = file.read_bytes() == (folder / "model.npz").read_bytes()
  return errors, equal, exact


def live(names: list[str], seed: int) -> int:
  """Checks fresh checkpoints; prints a line each."""
  failed = 0
  print(f"seed {seed}")
  with tempfile.TemporaryDirectory() as folder:
    for n, name in enumerate(names):
      make(name, pathlib.Path(folder) / name, seed + n)
      errors, equal, exact = check(pathlib.Path(folder) / name)
      good = max(errors.values()) <= BOUND and equal and exact
      failed += not good
      shown = ", ".join(f"{key} {value:.1e}" for key, value in errors.items())
      word = "ok" if good else "FAILED"
      print(f"{word} {name}: {shown}; ids {equal}, export {exact}", flush=True)
  return int(failed > 0)


def main() -> int:
  names = [a for a in sys.argv[1:] if a != "--live"] or list(RECIPES)
  if "--live" in sys.argv:
    return live(names, int(time.time()) % 10**6)
  for name in names:
    make(name, FOLDER / name)
    size = sum(f.stat().st_size for f in (FOLDER / name).iterdir())
    print(f"{name}: {size / 1024:.0f} KiB")
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
