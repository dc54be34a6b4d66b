"""docs/adding_a_system.md does what it says."""

import json
import pathlib
import re

import numpy as np
from safetensors.numpy import load_file, save_file

import bigvlm
from bigvlm.hub import table

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "adding_a_system.md"


def test_the_toy_of_the_page_loads_runs_and_is_written_back(tmp_path, monkeypatch):
  code = max(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S), key=len)
  assert len([line for line in code.splitlines() if line.strip()]) < 40
  scope: dict = {}
  exec(code, scope)
  monkeypatch.setitem(table.ARCHITECTURES, "ToyForCausalLM", scope["toy"])
  config = dict(architectures=["ToyForCausalLM"], vocab=50, width=24, depth=3, heads=3, hidden=40)
  (tmp_path / "config.json").write_text(json.dumps(config))
  rng = np.random.default_rng(0)
  sizes = {"mix.q": (24, 24), "mix.k": (24, 24), "mix.v": (24, 24), "mix.out": (24, 24)}
  sizes |= {"ff.gate": (40, 24), "ff.up": (40, 24), "ff.down": (24, 40)}
  sizes |= {"norm_a": (24,), "norm_b": (24,)}
  shapes = {f"layers.{i}.{k}.weight": s for i in range(3) for k, s in sizes.items()}
  shapes |= {"words.weight": (50, 24), "last_norm.weight": (24,), "words_out.weight": (50, 24)}
  tensors = {k: rng.standard_normal(s).astype(np.float32) * 0.3 for k, s in shapes.items()}
  save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

  model = bigvlm.load(tmp_path)
  ids = np.array([[5, 9, 11, 3]])
  logits = model.forward_hf({"input_ids": ids})["logits"]
  assert logits.shape == (1, 4, 50)
  np.testing.assert_allclose(logits, reference(tensors, ids, heads=3), rtol=2e-4, atol=2e-4)
  assert model.generate_hf({"input_ids": ids}, max_new_tokens=2)[0, 0] == logits[0, -1].argmax()
  model.save_hf(tmp_path / "out")
  back = load_file(tmp_path / "out" / "model.safetensors")
  assert {k: v.tobytes() for k, v in back.items()} == {k: v.tobytes() for k, v in tensors.items()}


def reference(w, ids, heads):
  """The same model in plain NumPy."""
  x = w["words.weight"][ids[0]].astype(np.float64)
  length, width = x.shape
  dim = width // heads

  def norm(y, scale):
    return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * scale

  angle = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, dim, 2) / dim)
  cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

  def turn(y):
    a, b = np.split(y, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

  for i in range(3):
    at = {k.removeprefix(f"layers.{i}.").removesuffix(".weight"): v for k, v in w.items()}
    h = norm(x, at["norm_a"])
    q, k, v = ((h @ at[f"mix.{n}"].T).reshape(length, heads, dim) for n in ("q", "k", "v"))
    scores = np.einsum("qhd,khd->hqk", turn(q), turn(k)) / np.sqrt(dim)
    scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    x = x + np.einsum("hqk,khd->qhd", p, v).reshape(length, width) @ at["mix.out"].T
    h = norm(x, at["norm_b"])
    gate = h @ at["ff.gate"].T
    x = x + (gate / (1 + np.exp(-gate)) * (h @ at["ff.up"].T)) @ at["ff.down"].T
  return (norm(x, w["last_norm.weight"]) @ w["words_out.weight"].T)[None]
