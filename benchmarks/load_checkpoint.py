"""Memory and time of loading a checkpoint straight to a mesh of eight devices.

Usage: python -m benchmarks.load_checkpoint [--gib=4] [--tiny]

Makes a random Gemma of that size in float32, loads it with `bigvlm.load` over eight host devices
(fsdp) and follows the process's own (anonymous) memory meanwhile. `beyond` is what the peak
held beside the parameters, in units of the largest stored tensor (must: 1.3).
"""

import argparse
import json
import os
import pathlib
import tempfile
import threading
import time

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402

import bigvlm  # noqa: E402
from benchmarks import common  # noqa: E402
from bigvlm.parallel import mesh as meshes  # noqa: E402


def checkpoint(folder: pathlib.Path, gib: float, tiny: bool) -> int:
  """Writes a random Gemma of about so many GiB; gives the bytes of its largest tensor."""
  from safetensors.numpy import save_file

  width, hidden, vocab = (64, 256, 512) if tiny else (2048, 16_384, 32_768)
  heads, dim = (2, 32) if tiny else (8, 256)
  layer = 3 * width * hidden + 2 * heads * dim * width + 2 * dim * width
  depth = max(2, round((gib * 2**30 / 4 - vocab * width) / layer))
  config = dict(
    architectures=["GemmaForCausalLM"],
    model_type="gemma",
    hidden_size=width,
    intermediate_size=hidden,
    num_hidden_layers=depth,
    num_attention_heads=heads,
    num_key_value_heads=1,
    head_dim=dim,
    vocab_size=vocab,
    dtype="float32",
  )
  (folder / "config.json").write_text(json.dumps(config))
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.standard_normal(shape, np.float32)

  index, largest = {}, 0
  parts = [{"model.embed_tokens.weight": draw(vocab, width), "model.norm.weight": draw(width)}]
  for i in range(depth):
    name = f"model.layers.{i}."
    parts.append(
      {
        f"{name}self_attn.q_proj.weight": draw(heads * dim, width),
        f"{name}self_attn.k_proj.weight": draw(dim, width),
        f"{name}self_attn.v_proj.weight": draw(dim, width),
        f"{name}self_attn.o_proj.weight": draw(width, heads * dim),
        f"{name}mlp.gate_proj.weight": draw(hidden, width),
        f"{name}mlp.up_proj.weight": draw(hidden, width),
        f"{name}mlp.down_proj.weight": draw(width, hidden),
        f"{name}input_layernorm.weight": draw(width),
        f"{name}post_attention_layernorm.weight": draw(width),
      }
    )
  for n, part in enumerate(parts):
    file = f"model-{n:05d}.safetensors"
    save_file(part, folder / file)
    index |= dict.fromkeys(part, file)
    largest = max(largest, *(x.nbytes for x in part.values()))
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
  return largest


def anonymous() -> int:
  """Bytes of this process that are no file's; pages of the mapped checkpoint are not its own."""
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split("RssAnon:")[1].split()[0]) * 1024


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--gib", type=float, default=4.0)
  parser.add_argument("--tiny", action="store_true", help="a size that shows only that it runs")
  args = parser.parse_args()
  mesh = meshes.make({"data": 1, "fsdp": 8, "tensor": 1})
  with tempfile.TemporaryDirectory() as folder:
    largest = checkpoint(pathlib.Path(folder), 0.01 if args.tiny else args.gib, args.tiny)
    before, peak, done = anonymous(), 0, threading.Event()

    def follow():
      nonlocal peak
      while not done.wait(0.002):
        peak = max(peak, anonymous())

    thread = threading.Thread(target=follow)
    thread.start()
    start = time.perf_counter()
    model = bigvlm.load(folder, mesh=mesh)
    jax.block_until_ready(model.params)
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    held = sum(x.nbytes for x in jax.tree.leaves(model.params))
  common.emit(
    "load_checkpoint",
    who="bigvlm",
    gib=held / 2**30,
    devices=8,
    seconds=seconds,
    largest_mib=largest / 2**20,
    peak_gib=(peak - before) / 2**30,
    beyond=(peak - before - held) / largest,
  )


if __name__ == "__main__":
  main()
