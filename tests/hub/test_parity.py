"""Every system against what its reference gave, on checkpoints that the reference made.

`python -m tests.parity.fixtures` makes them; nothing here needs torch or transformers.
"""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bigvlm
from bigvlm.utils import tree
from tests.parity import reference

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "hub"
NAMES = sorted(f.name for f in FOLDER.iterdir() if f.is_dir())
BOUND = 1e-5


class Case:
  """One fixture, loaded once a process."""

  made: dict[str, "Case"] = {}

  def __init__(self, name):
    self.folder = FOLDER / name
    with np.load(self.folder / "io.npz") as z:
      self.io = dict(z)
    self.inputs = {k[3:]: v for k, v in self.io.items() if k.startswith("in_")}
    self.model = bigvlm.load(self.folder)


@pytest.fixture
def case(request):
  name = request.param
  if name not in Case.made:
    Case.made.clear()
    jax.clear_caches()  # See tests/conftest.py.
    Case.made[name] = Case(name)
  return Case.made[name]


each = pytest.mark.parametrize("case", NAMES, indirect=True)


def test_there_are_fixtures_of_every_architecture():
  from bigvlm.hub import table

  found = {json.loads((FOLDER / n / "config.json").read_text())["architectures"][0] for n in NAMES}
  assert found >= table.ARCHITECTURES.keys() - {"CLIPVisionModel", "MetaClip2VisionModel"}


def error(ours, theirs, mask=None):
  assert ours.shape == theirs.shape
  if mask is not None:
    ours, theirs = ours[mask], theirs[mask]
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


@each
def test_outputs_are_the_references(case):
  out = case.model.forward_hf(case.inputs)
  wanted = [k[4:] for k in case.io if k.startswith("out_")]
  assert wanted
  for key in wanted:
    mask = case.io.get("mask") if key == "logits" else None
    bound = max(BOUND, 3 * case.io[f"noise_{key}"])
    assert error(out[key], case.io[f"out_{key}"], mask) <= bound, key


@each
def test_greedy_ids_are_the_references(case):
  if "ids" in case.io:
    ids = case.model.generate_hf(reference.prompts(case.io), max_new_tokens=int(case.io["count"]))
    np.testing.assert_array_equal(ids, case.io["ids"])
  elif not hasattr(case.model.module, "decoder"):  # An encoder, which says so.
    with pytest.raises(ValueError, match="generate"):
      case.model.generate_hf(case.inputs, max_new_tokens=2)


@each
def test_what_was_loaded_is_written_back(case, tmp_path):
  case.model.save_hf(tmp_path)
  a, b = (load_file(f / "model.safetensors") for f in (case.folder, tmp_path))
  assert a.keys() == b.keys()
  for name, x in a.items():
    assert (b[name].dtype, b[name].shape) == (x.dtype, x.shape), name
    assert b[name].tobytes() == x.tobytes(), name
  theirs, ours = (json.loads((f / "config.json").read_text()) for f in (case.folder, tmp_path))
  assert ours == theirs
  again = bigvlm.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, again.params, case.model.params)


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("-0")])
def test_bfloat16_comes_back_bit_for_bit(name, tmp_path):
  stored = load_file(FOLDER / name / "model.safetensors")
  half = {
    k: v.astype(ml_dtypes.bfloat16) if v.dtype == np.float32 else v for k, v in stored.items()
  }
  source, target = tmp_path / "in", tmp_path / "out"
  source.mkdir()
  save_file(half, source / "model.safetensors", metadata={"format": "pt"})
  (source / "config.json").write_bytes((FOLDER / name / "config.json").read_bytes())
  model = bigvlm.load(source)
  kinds = {str(x.dtype) for x in tree.flatten(model.params).values()}
  assert kinds == {"bfloat16"}
  model.save_hf(target)
  back = load_file(target / "model.safetensors")
  assert {k: (v.dtype, v.tobytes()) for k, v in back.items()} == {
    k: (v.dtype, v.tobytes()) for k, v in half.items()
  }
