"""Meshes from configs, batches on them, and what a wrong one is told."""

import jax
import numpy as np
import pytest

from bigvlm.parallel import mesh as mesh_lib


@pytest.mark.parametrize(
  "cfg,shape",
  [
    (dict(data=-1, fsdp=1, tensor=1), (8, 1, 1)),
    (dict(data=-1, fsdp=2, tensor=2), (2, 2, 2)),
    (dict(fsdp=-1), (1, 8, 1)),
    (dict(data=4), (4, 1, 1)),
    (dict(), (1, 1, 1)),
  ],
)
def test_sizes(cfg, shape):
  mesh = mesh_lib.make(cfg)
  assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
  assert mesh_lib.batch_size(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize(
  "names,sizes,shape",
  [
    (("x",), (8,), (1, 8, 1)),
    (("data",), (8,), (8, 1, 1)),
    (("model", "data"), (4, 2), (2, 4, 1)),
    (("tensor", "x", "fsdp"), (2, 2, 2), (1, 4, 2)),
    (("data", "fsdp", "tensor"), (2, 2, 2), (2, 2, 2)),
  ],
)
def test_any_mesh_becomes_one_of_our_axes(devices, names, sizes, shape):
  given = jax.make_mesh(sizes, names, devices=devices[:8])
  mesh = mesh_lib.named(given)
  assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
  assert set(mesh.devices.flat) == set(given.devices.flat)
  if names[0] == "model":
    np.testing.assert_array_equal(mesh.devices[:, :, 0], given.devices.T)


def test_given_devices_are_used(devices):
  mesh = mesh_lib.make(dict(data=-1), devices[2:5])
  assert set(mesh.devices.flat) == set(devices[2:5])


@pytest.mark.parametrize(
  "cfg,said",
  [
    (dict(data=4, fsdp=4), "needs 16 devices, there are 8"),
    (dict(data=-1, tensor=16), "needs 16 devices, there are 8"),
    (dict(data=-1, fsdp=3), "mesh.data=-1 wants 8 devices divided by 3"),
    (dict(data=-1, fsdp=-1), "only one axis may be -1, not data and fsdp"),
    (dict(data=0), "mesh.data=0"),
    (dict(dta=2), "did you mean 'data'"),
  ],
)
def test_mistakes_are_named(cfg, said):
  with pytest.raises(ValueError) as e:
    mesh_lib.make(cfg)
  assert said in str(e.value)


class Device:
  """A device of another process, as far as `make` looks before it builds the mesh."""

  def __init__(self, process_index):
    self.process_index = process_index


@pytest.mark.parametrize(
  "cfg,said",
  [
    (dict(data=2), "uses 2 of 8 devices"),
    (dict(data=-1, tensor=8), "mesh.tensor=8 does not divide the 4 devices of a process"),
  ],
)
def test_every_process_needs_rows_of_its_own(cfg, said):
  with pytest.raises(ValueError) as e:
    mesh_lib.make(cfg, [Device(i // 4) for i in range(8)])
  assert said in str(e.value)


def test_batch_that_does_not_divide_is_refused_by_field():
  mesh = mesh_lib.make(dict(data=4, fsdp=2))
  mesh_lib.check_batch(mesh, 16, "stages[0].batch_size")
  with pytest.raises(ValueError) as e:
    mesh_lib.check_batch(mesh, 12, "stages[0].batch_size")
  assert "stages[0].batch_size=12 is not divisible by the 8 parts" in str(e.value)
  assert "use 8 or 16" in str(e.value)
  with pytest.raises(ValueError, match="use 8"):
    mesh_lib.check_batch(mesh, 4, "batch_size")


def test_put_global_cuts_rows_and_keeps_types():
  mesh = mesh_lib.make(dict(data=2, fsdp=2, tensor=2))
  arrays = dict(image=np.arange(8 * 3, dtype=np.uint8).reshape(8, 3), bad=np.arange(8) % 2)
  out = mesh_lib.put_global(arrays, mesh)
  assert out["image"].dtype == np.uint8
  for name, array in arrays.items():
    np.testing.assert_array_equal(out[name], array)
    assert out[name].sharding == mesh_lib.batch_sharding(mesh)
    assert {s.data.shape[0] for s in out[name].addressable_shards} == {2}


def test_axes_are_left_to_the_partitioner():
  mesh = mesh_lib.make(dict(data=2, fsdp=4))
  x = mesh_lib.put_global(np.ones((8, 4), np.float32), mesh)
  w = jax.device_put(np.ones((4, 4), np.float32), mesh_lib.replicated(mesh))
  out = jax.jit(lambda x, w: (x @ w).sum(0))(x, w)
  np.testing.assert_array_equal(out, np.full(4, 32))
