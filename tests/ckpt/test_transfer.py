"""Checkpoints of others: rules, slices, strictness, and the way back."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from bigvlm.ckpt import axes, rules, sources, transfer
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.parallel import mesh as meshes

HEADS, DIM, WIDTH, DEPTH = 4, 6, 8, 3

MAP = CkptMap(
  (
    Rule("embed.weight", "embed/embedding"),
    Rule("pos.weight", ("cls_posemb", "posemb"), "n d -> 1 n d"),
    *rules.under(
      (
        *rules.linear("q", "attn/q", "(h d) i -> i h d", "(h d) -> h d"),
        *rules.linear("o", "attn/o", "o (h d) -> h d o"),
        Rule("kv.weight", ("attn/k/kernel", "attn/v/kernel"), "(h + d) i -> i h d"),
      ),
      "layers.{i}.",
      "blocks/*/",
    ),
    *(
      Rule(f"pool.in_{kind}", tuple(f"pool/{n}/{leaf}" for n in "qkv"), how)
      for kind, leaf, how in (
        ("weight", "kernel", "(h d) i -> i h d"),
        ("bias", "bias", "(h d) -> h d"),
      )
    ),
    Rule("scale", "t", "-> 1"),
  ),
  rename=((r"^model\.", ""),),
  tied=(("lm_head.weight", "embed.weight"),),
  carry=(r".*\.position_ids",),
)


def tensors(seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  shapes = {"embed.weight": (11, WIDTH), "pos.weight": (5, WIDTH), "scale": ()}
  for i in range(DEPTH):
    shapes[f"layers.{i}.q.weight"] = (HEADS * DIM, WIDTH)
    shapes[f"layers.{i}.q.bias"] = (HEADS * DIM,)
    shapes[f"layers.{i}.o.weight"] = (WIDTH, HEADS * DIM)
    shapes[f"layers.{i}.kv.weight"] = (HEADS * 2 * DIM, WIDTH)
  shapes["pool.in_weight"] = (3 * HEADS * DIM, WIDTH)
  shapes["pool.in_bias"] = (3 * HEADS * DIM,)
  return {k: rng.standard_normal(s).astype(dtype) for k, s in shapes.items()}


def abstract():
  heads = (WIDTH, HEADS, DIM)
  layer = {
    "attn": {
      "q": {"kernel": (DEPTH, *heads), "bias": (DEPTH, HEADS, DIM)},
      "o": {"kernel": (DEPTH, HEADS, DIM, WIDTH)},
      **{n: {"kernel": (DEPTH, *heads)} for n in "kv"},
    }
  }
  shapes = {
    "embed": {"embedding": (11, WIDTH)},
    "cls_posemb": (1, 1, WIDTH),
    "posemb": (1, 4, WIDTH),
    "blocks": {"g0": {"b0": layer}},
    "pool": {n: {"kernel": heads, "bias": (HEADS, DIM)} for n in "qkv"},
    "t": (1,),
  }
  return jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
  )


@pytest.fixture
def folder(tmp_path):
  save_file(tensors(), tmp_path / "model.safetensors")
  return tmp_path


def load(folder, ckpt_map=MAP, **kwargs):
  return transfer.load(ckpt_map, sources.open_source(folder), abstract(), **kwargs)


def write(folder, **changes):
  """The file with tensors changed, added, or (None) taken away."""
  found = tensors() | {k.replace("__", "."): v for k, v in changes.items()}
  save_file({k: v for k, v in found.items() if v is not None}, folder / "model.safetensors")


def test_a_layer_lands_in_its_row_with_its_axes_moved(folder):
  params, _ = load(folder)
  q = tensors()["layers.2.q.weight"]
  x = np.arange(WIDTH, dtype=np.float32)
  ours = np.einsum("d,dhk->hk", x, params["blocks"]["g0"]["b0"]["attn"]["q"]["kernel"][2])
  np.testing.assert_allclose(ours.reshape(-1), q @ x, rtol=1e-5)


def test_a_fused_tensor_is_cut_in_order(folder):
  params, _ = load(folder)
  fused = tensors()["pool.in_weight"].reshape(3, HEADS, DIM, WIDTH)
  for n, name in enumerate("qkv"):
    np.testing.assert_array_equal(
      params["pool"][name]["kernel"], fused[n].transpose(2, 0, 1), err_msg=name
    )
  np.testing.assert_array_equal(params["cls_posemb"][0, 0], tensors()["pos.weight"][0])


def test_a_fused_tensor_of_heads_that_take_turns(folder):
  params, _ = load(folder)
  fused = tensors()["layers.1.kv.weight"].reshape(HEADS, 2, DIM, WIDTH)
  for n, name in enumerate("kv"):
    kernel = params["blocks"]["g0"]["b0"]["attn"][name]["kernel"][1]
    np.testing.assert_array_equal(kernel, fused[:, n].transpose(2, 0, 1), err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_what_goes_in_comes_out(tmp_path, dtype):
  stored = tensors(dtype=dtype)
  stored["lm_head.weight"] = stored["embed.weight"].copy()
  stored["text.position_ids"] = np.arange(5)[None]
  stored = {f"model.{k}" if "layers" in k else k: v for k, v in stored.items()}
  save_file(stored, tmp_path / "model.safetensors")
  params, origin = load(tmp_path)
  back = transfer.export(MAP, params, origin)
  assert back.keys() == stored.keys()
  for name, x in stored.items():
    assert back[name].dtype == x.dtype and back[name].shape == x.shape, name
    assert back[name].tobytes() == x.tobytes(), name


def test_a_tied_alias_that_was_absent_stays_absent(folder):
  params, origin = load(folder)
  assert "lm_head.weight" not in transfer.export(MAP, params, origin)


def test_a_tied_alias_of_other_values_is_refused(folder):
  write(folder, lm_head__weight=tensors(1)["embed.weight"])
  with pytest.raises(ValueError, match=r"lm_head.weight is tied to embed.weight.*differ"):
    load(folder)


def test_missing_and_unexpected_tensors_name_the_nearest(folder):
  write(folder, scale=None, scales=np.zeros(()), pos__weight=None)
  with pytest.raises(ValueError) as e:
    load(folder)
  line = str(e.value)
  assert "2 tensors missing" in line and "scale (nearest: scales)" in line
  assert "1 tensors unexpected: scales (nearest: scale)" in line and "pos.weight" in line


def test_an_excuse_names_what_may_be_left_over(folder):
  write(folder, extra__weight=np.zeros(3, np.float32))
  with pytest.raises(ValueError, match=r"unexpected: extra.weight"):
    load(folder)
  _, origin = load(folder, excuse=(r"extra\..*",))
  assert "extra.weight" not in origin.carried


def test_another_shape_names_both(folder):
  write(folder, layers__1__q__weight=np.zeros((HEADS * DIM, WIDTH + 1), np.float32))
  with pytest.raises(ValueError) as e:
    load(folder)
  line = str(e.value)
  assert "layers.1.q.weight has shape [24, 9]" in line and "wants [24, 8]" in line
  assert "blocks/g0/b0/attn/q/kernel[1]" in line


def test_layers_of_two_dtypes_need_a_cast_that_was_asked_for(folder):
  q = tensors()["layers.1.q.weight"].astype(np.float16)
  write(folder, layers__1__q__weight=q)
  with pytest.raises(ValueError, match=r"stored as float16, float32; load with dtype="):
    load(folder)
  params, _ = load(folder, dtype="float32")
  assert params["blocks"]["g0"]["b0"]["attn"]["q"]["kernel"].dtype == np.float32


def test_a_cast_that_was_asked_for_keeps_the_file_dtype_on_the_way_back(folder):
  params, origin = load(folder, dtype="bfloat16")
  assert params["posemb"].dtype == ml_dtypes.bfloat16
  assert transfer.export(MAP, params, origin)["pos.weight"].dtype == np.float32
  assert transfer.export(MAP, params, origin, dtype="bfloat16")["scale"].dtype == ml_dtypes.bfloat16


def test_two_names_for_one_tensor_are_refused(folder):
  write(folder, model__scale=np.zeros((), np.float32))
  with pytest.raises(ValueError, match=r"scale and model.scale are both scale|both scale"):
    load(folder)


@pytest.mark.parametrize(
  "spec", [(None, "fsdp"), (None, None, "fsdp"), ("data", None, "tensor"), (None, "tensor")]
)
def test_every_device_gets_its_slice(folder, devices, spec):
  mesh = meshes.make({"data": 1, "fsdp": 2, "tensor": 2}, devices[:4])
  whole, _ = load(folder)

  def layout(x):
    fits = len(spec) <= len(x.shape) and all(
      a is None or n % mesh.shape[a] == 0 for a, n in zip(spec, x.shape, strict=False)
    )
    return NamedSharding(mesh, PartitionSpec(*spec) if fits else PartitionSpec())

  cut, _ = load(folder, shardings=jax.tree.map(layout, abstract()))
  jax.tree.map(np.testing.assert_array_equal, cut, whole)


class Counting:
  """A source that knows how much was read."""

  def __init__(self, source):
    self.source, self.path, self.read_bytes = source, source.path, []

  def specs(self):
    return self.source.specs()

  def read(self, key, index=()):
    x = self.source.read(key, index)
    self.read_bytes.append(x.nbytes)
    return x


def test_a_slice_of_heads_reads_that_slice_only(folder):
  source = Counting(sources.open_source(folder))
  whole = tensors()["layers.0.q.weight"]
  index = (slice(0, WIDTH), slice(1, 2), slice(0, DIM))
  read, got, within = axes.stored_slice("(h d) i -> i h d", (WIDTH, HEADS, DIM), index)
  x = axes.to_param(source.read("layers.0.q.weight", read), "(h d) i -> i h d", got)[within]
  assert source.read_bytes == [whole.nbytes // HEADS]
  np.testing.assert_array_equal(x, whole.reshape(HEADS, DIM, WIDTH).transpose(2, 0, 1)[:, 1:2])


def test_heads_that_take_turns_are_read_by_the_slice(folder, devices):
  source = Counting(sources.open_source(folder))
  mesh = meshes.make({"data": 1, "tensor": HEADS}, devices[:HEADS])

  def layout(path, x):
    kv = path[0].key == "blocks" and path[-2].key in "kv"
    spec = PartitionSpec(None, None, "tensor") if kv else PartitionSpec()
    return NamedSharding(mesh, spec)

  places = jax.tree_util.tree_map_with_path(layout, abstract())
  found, _ = transfer.load(MAP, source, abstract(), shardings=places)
  whole = tensors()["layers.0.kv.weight"].nbytes
  # A head of both is read for each of them; the file's smallest other tensors are no such size.
  assert source.read_bytes.count(whole // HEADS) == 2 * DEPTH * HEADS
  assert whole not in source.read_bytes
  want = load(folder)[0]["blocks"]["g0"]["b0"]["attn"]["v"]["kernel"]
  np.testing.assert_array_equal(found["blocks"]["g0"]["b0"]["attn"]["v"]["kernel"], want)


@pytest.mark.parametrize("pattern", ["", "o i -> i o", "(h d) i -> i h d", "o c p q -> p q c o"])
def test_any_slice_of_any_pattern(pattern):
  rng = np.random.default_rng(0)
  groups, right = axes.sides(pattern, 3)
  shape = tuple(rng.integers(2, 5, len(right)))
  stored = rng.standard_normal(axes.stored_shape(pattern, shape)).astype(np.float32)
  whole = axes.to_param(stored, pattern, shape)
  np.testing.assert_array_equal(axes.to_stored(whole, pattern), stored)
  for _ in range(20):
    starts = [int(rng.integers(0, n)) for n in shape]
    index = tuple(
      slice(s, int(rng.integers(s + 1, n + 1))) for s, n in zip(starts, shape, strict=True)
    )
    read, got, within = axes.stored_slice(pattern, shape, index)
    np.testing.assert_array_equal(
      axes.to_param(stored[read], pattern, got)[within], whole[index], err_msg=str(index)
    )


def test_rows_of_a_stacked_tensor(tmp_path):
  stacked = np.random.default_rng(0).standard_normal((DEPTH, WIDTH, HEADS, DIM)).astype(np.float32)
  np.savez(tmp_path / "model.npz", **{"params/q": stacked.astype(ml_dtypes.bfloat16)})
  ckpt_map = CkptMap((Rule("params/q[{i}]", "blocks/*/q"),))
  like = {"blocks": {"g0": {"b0": {"q": jax.ShapeDtypeStruct(stacked.shape, np.float32)}}}}
  params, origin = transfer.load(ckpt_map, sources.open_source(tmp_path), like)
  back = transfer.export(ckpt_map, params, origin)
  assert list(back) == ["params/q"] and back["params/q"].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(back["params/q"], stacked.astype(ml_dtypes.bfloat16))


def test_periods_of_layer_kinds_interleave():
  like = {
    "blocks": {
      "g0": {b: {"w": jax.ShapeDtypeStruct((2, 3), np.float32)} for b in ("b0", "b1")},
      "g1": {"b0": {"w": jax.ShapeDtypeStruct((1, 3), np.float32)}},
    }
  }
  flat = {
    "/".join(["blocks", g, b, "w"]): like["blocks"][g][b]["w"]
    for g in like["blocks"]
    for b in like["blocks"][g]
  }
  bound = CkptMap((Rule("l.{i}", "blocks/*/w"),)).bind(flat)
  keys = {b.dsts[0]: b.keys for b in bound}
  assert keys == {
    "blocks/g0/b0/w": ("l.0", "l.2"),
    "blocks/g0/b1/w": ("l.1", "l.3"),
    "blocks/g1/b0/w": ("l.4",),
  }


def test_a_parameter_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match=r"no rule fills the parameter new/kernel"):
    MAP.bind({"new/kernel": jax.ShapeDtypeStruct((2,), np.float32)})


def test_shards_are_read_by_their_index(tmp_path):
  stored = tensors()
  names = list(stored)
  parts = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
  for file, some in parts.items():
    save_file({k: stored[k] for k in some}, tmp_path / file)
  index = {"weight_map": {k: f for f, some in parts.items() for k in some}}
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  whole, _ = load(tmp_path)
  np.testing.assert_array_equal(whole["embed"]["embedding"], stored["embed.weight"])
  (tmp_path / "b.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match=r"names b.safetensors, which is not in"):
    load(tmp_path)


def test_pickles_are_never_opened(tmp_path):
  (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
  with pytest.raises(ValueError, match=r"pytorch_model.bin is a pickle.*save_file"):
    sources.open_source(tmp_path)
  np.savez(tmp_path / "model.npz", a=np.array([{}], dtype=object))
  with pytest.raises(ValueError, match=r"model.npz.*a is a pickled object"):
    sources.open_source(tmp_path / "model.npz")


@pytest.mark.parametrize("keep", [3, 40, -5])
def test_a_file_that_was_cut_short_is_refused(folder, keep):
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
    sources.open_source(folder)


def test_nothing_there(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"holds no model.safetensors"):
    sources.open_source(tmp_path)


def test_export_of_a_model_that_came_from_nowhere_has_canonical_names(folder):
  params, _ = load(folder)
  back = transfer.export(MAP, params)
  assert back.keys() == load_file(folder / "model.safetensors").keys()
