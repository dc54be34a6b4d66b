"""Adapters of PEFT against bigvlm, both ways, on random models of transformers.

Usage: python -m tests.parity.peft_live [--only=NAME,...] [--seed=N] [--fixtures]

PEFT makes an adapter and gives outputs; bigvlm loads it over the same checkpoint and must give the
same. What bigvlm writes has the same names and bytes, PEFT loads it without a word and gives its
own outputs again, and with the adapter merged a plain transformers model gives them too.
`--fixtures` makes tests/fixtures/peft instead: adapters over checkpoints of tests/fixtures/hub.
Exit code 1 when anything is beyond its bound.
"""

import argparse
import copy
import json
import pathlib
import shutil
import tempfile
import time
import warnings
from typing import Any

import numpy as np

import tests.parity.torchvision_ops  # noqa: F401
from tests.parity import reference
from tests.parity.recipes import RECIPES

BOUND = 1e-5
_TEXT = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
_TOWER = r"(.*\.)?layers\.\d+\..*\.(q_proj|out_proj|fc1|fc2)|(.*\.)?embeddings\.patch_embedding"
_T5 = ["q", "v", "wo", "wi", "wi_0"]
# Recipe -> target modules: every layout of names there is, and every kind of linear layer.
TARGETS: dict[str, Any] = {
  "aimv2": ["q_proj", "up_proj", "visual_projection"],
  "clip": rf"{_TOWER}|text_projection",
  "clip_vision": _TOWER,
  "dinov2": ["q_proj", "o_proj", "fc2"],
  "dinov2_classifier": ["k_proj", "v_proj", "fc1", "classifier"],
  "gemma": _TEXT,
  "gemma2": ["k_proj", "up_proj"],
  "gemma3": [*_TEXT, "out_proj", "fc1"],
  "gemma3_text": _TEXT,
  "metaclip_2_vision": _TOWER,
  "mt5": _T5,
  "paligemma": [*_TEXT, "fc2", "out_proj", "linear"],
  "paligemma2": [*_TEXT, "fc1", "linear", "patch_embedding"],
  "siglip": _TOWER,
  "siglip2": rf"{_TOWER}|.*\.head\.mlp\.fc1|text_model\.head",
  "siglip2_vision": _TOWER,
  "siglip_vision": _TOWER,
  "t5": _T5,
  "t5_v1_1": _T5,
  "vit": ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
  "vit_classifier": ["o_proj", "fc2", "classifier"],
}
FIXTURES = ("paligemma", "siglip")
_FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures"


def adapted(model: Any, targets: Any, seed: int) -> Any:
  """A PEFT model with a random adapter; odd seeds use what else its config may say."""
  import peft
  import torch

  more: dict[str, Any] = {}
  if seed % 2:
    last = sorted(n for n, _ in model.named_modules() if n.endswith(("q_proj", "SelfAttention.q")))
    more = dict(use_rslora=True, rank_pattern={last[0]: 5}, alpha_pattern={last[0]: 3})
  config = peft.LoraConfig(r=3, lora_alpha=7, lora_dropout=0.1, target_modules=targets, **more)
  out = peft.get_peft_model(model, config).eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, p in out.named_parameters():
      if ".lora_" in name:
        fan_in = np.prod(p.shape[1:])
        p.copy_(torch.randn(p.shape, generator=generator) / np.sqrt(fan_in) / 2)
  return out


def outputs(model: Any, made: tuple[Any, dict, dict]) -> dict[str, np.ndarray]:
  """Outputs of a recipe by a model of PEFT."""
  _, inputs, options = made
  names = [n for n in (reference.DEFAULTS | options)["outputs"] if n != "image_features"]
  return reference.forward(model, inputs, tuple(names))


def check(name: str, seed: int) -> dict[str, Any]:
  """One row: the errors of a recipe at a seed in all directions, and what failed."""
  import peft
  from safetensors.numpy import load_file

  import bigvlm
  from bigvlm import lora

  row: dict[str, Any] = dict(name=name, seed=seed, errors={}, failed=[])
  made = RECIPES[name](seed)
  mask = (reference.DEFAULTS | made[2])["mask"]
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    reference.save(made, root / "base", old=bool(seed % 2))
    kind = type(made[0])
    theirs = adapted(made[0], TARGETS[name], seed)
    want, exact = outputs(theirs, made), outputs(copy.deepcopy(theirs).double(), made)
    masks = {key: mask if key == "logits" else None for key in want}
    noise = {key: reference.error(want[key], exact[key], masks[key]) for key in want}
    theirs.save_pretrained(root / "theirs")
    fresh = kind.from_pretrained(root / "base", attn_implementation="eager").eval()
    plain = reference.forward(fresh, made[1], tuple(want))

    def compare(what: str, got: dict) -> None:
      for key, value in want.items():
        found = reference.error(got[key], value, masks[key])
        row["errors"][f"{what} {key}"] = found
        if not found <= max(BOUND, 3 * noise[key]):
          row["failed"].append(f"{what} {key}: {found:.1e}")

    if all(reference.error(plain[k], v, None) < 1e-3 for k, v in want.items()):
      row["failed"].append("the adapter changes nothing")
    model = bigvlm.load(root / "base")
    ours = lora.load_peft(model, root / "theirs")
    compare("loaded", ours.forward_hf(made[1]))
    lora.save_peft(ours, root / "ours")
    a, b = (load_file(root / n / "adapter_model.safetensors") for n in ("theirs", "ours"))
    ranks = {v.shape[0] for k, v in a.items() if ".lora_A." in k}
    if a.keys() != b.keys():
      row["failed"].append(f"names differ: {sorted(a.keys() ^ b.keys())[:3]}")
    elif len(ranks) == 1 and any(a[k].tobytes() != b[k].tobytes() for k in a):
      row["failed"].append("the tensors written differ from those read")
    with warnings.catch_warnings(record=True) as said:
      warnings.simplefilter("always")
      again = peft.PeftModel.from_pretrained(fresh, root / "ours").eval()
    row["failed"] += [str(w.message)[:200] for w in said if "adapter keys" in str(w.message)]
    count = sum(".lora_A." in n for n, _ in again.named_parameters())
    if count != sum(".lora_A." in n for n in b):
      row["failed"].append(f"PEFT made {count} adapters of ours")
    compare("written", outputs(again, made))
    ours.params, _ = lora.merge(ours.params)
    ours.save_hf(root / "merged")
    merged = kind.from_pretrained(root / "merged", attn_implementation="eager").eval()
    compare("merged", reference.forward(merged, made[1], tuple(want)))
  return row


def fixtures() -> None:
  """Writes tests/fixtures/peft: an adapter of PEFT and what the adapted fixture gives."""
  for name in FIXTURES:
    made = RECIPES[name](0)
    folder = _FOLDER / "peft" / f"{name}-0"
    shutil.rmtree(folder, ignore_errors=True)
    model = adapted(made[0], TARGETS[name], 0)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    out = {f"out_{k}": v for k, v in outputs(model, made).items()}
    np.savez_compressed(folder / "io.npz", **out)
    print(f"{name}: {sum(f.stat().st_size for f in folder.iterdir()) / 1024:.0f} KiB")


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", default="", help="recipes, by name")
  parser.add_argument("--seed", type=int, default=int(time.time()) % 10**6)
  parser.add_argument("--fixtures", action="store_true", help="make tests/fixtures/peft")
  args = parser.parse_args()
  if args.fixtures:
    fixtures()
    return 0
  only = [n for n in args.only.split(",") if n] or list(TARGETS)
  print(f"seed {args.seed}")
  failed = False
  for seed, name in enumerate(only, args.seed):
    try:
      row = check(name, seed)
    except Exception as e:  # A row that says so, and the others still run.
      row = dict(name=name, seed=seed, errors={}, failed=[repr(e)])
    row["errors"] = {k: f"{v:.1e}" for k, v in row["errors"].items()}
    print(json.dumps(row), flush=True)
    failed |= bool(row["failed"])
  return int(failed)


if __name__ == "__main__":
  raise SystemExit(main())
