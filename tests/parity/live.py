"""Fresh random checkpoints of the reference against bigvlm, and the page that says how close.

Usage: python -m tests.parity.live [--only=NAME,...] [--seed=N] [--write]

Every recipe is made with two new seeds, in both styles of config.json and of tensor names,
loaded, run, generated from, differentiated, written back and loaded by transformers again.
`--write` puts docs/parity.md in place. One process a recipe file, so that memory is given back.
Exit code 1 when anything is beyond its bound.
"""

import argparse
import importlib
import json
import multiprocessing
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

import tests.parity.torchvision_ops  # noqa: F401
from tests.parity import gradients, reference
from tests.parity.recipes import _FILES

BOUND = 1e-5
_PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "parity.md"


def check(name: str, make: Any, seed: int, old: bool) -> dict[str, Any]:
  """One row: the errors of a recipe at a seed, and what failed."""
  import bigvlm

  made = make(seed)
  io = reference.record(made)
  row: dict[str, Any] = dict(name=name, seed=seed, style="v4" if old else "v5", failed=[])
  with tempfile.TemporaryDirectory() as folder:
    source, target = pathlib.Path(folder) / "in", pathlib.Path(folder) / "out"
    reference.save(made, source, old=old)
    model = bigvlm.load(source)
    inputs = {k[3:]: v for k, v in io.items() if k.startswith("in_")}
    out = model.forward_hf(inputs)
    row["errors"] = {}
    for key in (k[4:] for k in io if k.startswith("out_")):
      mask = io.get("mask") if key == "logits" else None
      found = reference.error(out[key], io[f"out_{key}"], mask) if key in out else float("inf")
      row["errors"][key] = found
      if not found <= max(BOUND, 3 * float(io[f"noise_{key}"])):  # NaN fails too.
        row["failed"].append(f"{key}: {found:.1e}")
    if "ids" in io:
      ids = model.generate_hf(reference.prompts(io), max_new_tokens=int(io["count"]))
      row["ids"] = bool(np.array_equal(ids, io["ids"]))
      if not row["ids"]:
        row["failed"].append(f"ids: {ids.tolist()} for {io['ids'].tolist()}")
    decodes = model.system.inputs in ("lm", "vlm", "encdec", "memory")
    if decodes and not gradients.resampled(model, inputs):
      found, failed = gradients.errors(made, model, old)
      row["gradients"] = float(np.max(list(found.values())))
      row["failed"] += failed
    model.save_hf(target)
    row["export"] = _exported(source, target, made[0], row["failed"])
  return row


def _exported(source: pathlib.Path, target: pathlib.Path, model: Any, failed: list) -> bool:
  """Whether every tensor came back byte for byte, and transformers loads it without a word."""
  from safetensors.numpy import load_file

  a, b = (load_file(folder / "model.safetensors") for folder in (source, target))
  same = a.keys() == b.keys() and all(
    a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes()
    for k in a
  )
  if not same:
    failed.append("export: tensors differ")
  _, info = type(model).from_pretrained(target, output_loading_info=True)
  for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
    if info[what]:
      failed.append(f"transformers, {what}: {sorted(info[what])[:3]}")
      same = False
  return same


def family(job: tuple[str, tuple[str, ...], int]) -> list[dict[str, Any]]:
  """All rows of one recipe file, in a process of their own."""
  file, only, seed = job
  recipes = importlib.import_module(f"tests.parity.recipes_{file}").RECIPES
  rows = []
  for n, (name, make) in enumerate(recipes.items()):
    if only and name not in only:
      continue
    for old in (False, True):
      start = time.perf_counter()
      try:
        row = check(name, make, seed + 2 * n + old, old)
      except Exception as e:  # A row that says so, and the others still run.
        row = dict(name=name, seed=seed, style="v4" if old else "v5", errors={}, failed=[repr(e)])
      row["seconds"] = time.perf_counter() - start
      print(json.dumps(row), flush=True)
      rows.append(row)
  return rows


def page(rows: list[dict[str, Any]]) -> str:
  """docs/parity.md."""
  import torch
  import transformers

  lines = [
    "# Parity with the reference",
    "",
    f"Made by `make parity`: transformers {transformers.__version__}, torch {torch.__version__},",
    "float32, eager attention, random tiny checkpoints of odd sizes with padded batches. Errors",
    "are max|ours - theirs| / max|theirs|, the larger of two seeds; the bound is 1e-5 or three",
    "times the reference's own float32 noise. `gradients`: of one loss step, bound 1e-4; where the",
    "reference's float32 is further off, against its float64, and the bound is that or three times",
    "the tensor's own noise (the largest of four runs with weights one float32 up or down).",
    "`ids`: greedy ids equal. `export`: every tensor written back byte for byte, and loaded by",
    "transformers with no missing and no unexpected key. Each row holds one checkpoint in the",
    "style of transformers 5 and one in that of version 4.",
    "",
    "| system | errors | gradients | ids | export | holds |",
    "|---|---|---|---|---|---|",
  ]
  for name in dict.fromkeys(row["name"] for row in rows):
    some = [row for row in rows if row["name"] == name]
    errors: dict[str, float] = {}
    for row in some:
      for key, value in row["errors"].items():
        errors[key] = float(np.maximum(errors.get(key, 0.0), value))  # NaN stays.
    ids = {row["ids"] for row in some if "ids" in row}
    slopes = [row["gradients"] for row in some if "gradients" in row]
    cells = [
      name,
      ", ".join(f"{key} {value:.1e}" for key, value in errors.items()),
      f"{max(slopes):.1e}" if slopes else "",
      "" if not ids else "equal" if ids == {True} else "**differ**",
      "exact" if all(row.get("export") for row in some) else "**no**",
      "**no**" if any(row["failed"] for row in some) else "yes",
    ]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", default="", help="recipes, by name")
  parser.add_argument("--seed", type=int, default=int(time.time()) % 10**6)
  parser.add_argument("--write", action="store_true", help="write docs/parity.md")
  args = parser.parse_args()
  only = tuple(n for n in args.only.split(",") if n)
  print(f"seed {args.seed}")
  jobs = [(file, only, args.seed) for file in _FILES]
  with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
    rows = [row for part in pool.imap(family, jobs, chunksize=1) for row in part]
  text = page(rows)
  print(text)
  if args.write:
    _PAGE.write_text(text, "utf-8")
  failed = [row for row in rows if row["failed"]]
  for row in failed:
    print(f"FAILED {row['name']} {row['style']} seed {row['seed']}: {'; '.join(row['failed'])}")
  return 1 if failed or not rows else 0


if __name__ == "__main__":
  raise SystemExit(main())
