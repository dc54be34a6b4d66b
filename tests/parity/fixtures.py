"""Makes the small checkpoints of tests/fixtures/hub, with torch and transformers.

Usage: python -m tests.parity.fixtures [NAME ...]

Two of every recipe: seed 0 as transformers 5.23.0 writes it, seed 1 in the style of version 4
with the tensor names of the hub's files; of variants in `ONCE` the second only. Their weights are
not stored (see `weights`).
"""

import pathlib
import shutil
import sys

import numpy as np

import tests.parity.torchvision_ops  # noqa: F401
from tests.parity import reference, weights
from tests.parity.recipes import RECIPES

# Parts of the others, or the same under other inputs or masks, or made of the same slots as others:
# one of each is enough. `make parity` makes two of every one.
ONCE = (
  "aimv2_native",
  "bakllava",
  "blip2_t5",
  "clip_legacy_eos",
  "clip_vision",
  "dinov2_classifier",
  "dinov2_resized",
  "gemma3_text",
  "idefics3",
  "idefics_plain",
  "instructblip_llama",
  "instructblip_t5",
  "instructblip_video",
  "internvl_layers",
  "llama_dynamic",
  "llama_yarn",
  "llava_next_video",
  "llava_onevision_tiles",
  "llava_siglip",
  "llava_tied",
  "mistral",
  "mistral3",
  "mllama_text",
  "mt5_encoder",
  "opt",
  "opt_bare",
  "paligemma_causal",
  "persimmon",
  "phi",
  "qwen2",
  "siglip2_vision",
  "siglip_vision",
  "t5_encoder",
  "umt5_encoder",
  "video_llava",
  "vit_classifier",
  "vit_resized",
)
# Compared live only: their weights are those of others, under other masks or rules.
LIVE_ONLY = (
  "aimv2_trunk",
  "aimv2_unmasked",
  "gemma3_causal",
  "llama_longrope",
  "llama_rules",
  "metaclip_2_vision",
  "mllama_any",
  "mllama_text_only",
  "siglip2_fixed",
  "siglip_masked",
  "text_body",
)
# Also with their rows padded on the right.
RIGHT = ("gemma", "gemma2")
FOLDER = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "hub"


def make(name: str) -> None:
  """Writes the fixtures of one recipe."""
  for seed in (1,) if name in ONCE else (0, 1):
    folder = FOLDER / f"{name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    made = RECIPES[name](seed)
    reference.save(made, folder, old=seed == 1)
    parameters = {k: v.detach().numpy() for k, v in made[0].named_parameters()}
    weights.reduce(folder, parameters, seed)
    np.savez_compressed(folder / "io.npz", **reference.record(made))
    if name in RIGHT and seed == 0:
      np.savez_compressed(folder / "right.npz", **right(made))


def right(made: tuple) -> dict[str, np.ndarray]:
  """The record of a text model whose rows are padded on the right, every position compared."""
  model, inputs, options = made
  lengths = inputs["attention_mask"].sum(axis=1)
  rows = zip(inputs["input_ids"], inputs["attention_mask"], lengths, strict=True)
  ids, mask = zip(*((np.roll(a, n), np.roll(m, n)) for a, m, n in rows), strict=True)
  turned = dict(input_ids=np.stack(ids), attention_mask=np.stack(mask))
  return reference.record((model, turned, options | dict(mask=None, prompts=turned)))


def main() -> None:
  for name in sys.argv[1:] or [n for n in RECIPES if n not in LIVE_ONLY]:
    make(name)
    size = sum(f.stat().st_size for f in FOLDER.glob(f"{name}-*/*"))
    print(f"{name}: {size / 1024:.0f} KiB")


if __name__ == "__main__":
  main()
