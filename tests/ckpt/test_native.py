"""Checkpoints: what comes back, what is refused, and what survives a kill or a full disk."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.ckpt import native
from tests.ckpt import trials, worker


@pytest.fixture
def mesh(devices):
  return worker.make_mesh((4, 2))


@pytest.fixture
def saved(tmp_path, mesh):
  """A checkpointer whose directory has checkpoint 5, and its state."""
  manager = native.Checkpointer(tmp_path / "ckpt")
  state = worker.state(5, mesh)
  manager.save(5, state, {"stage": "one", "data": {"next": [1, 2]}})
  manager.wait()
  yield manager, state
  manager.close()


def test_state_and_meta_come_back(saved):
  manager, state = saved
  found, meta = manager.restore(worker.like(state))
  assert worker.equal(found, state)
  assert meta == {"stage": "one", "data": {"next": [1, 2]}}
  specs, same_meta = manager.describe(5)
  assert same_meta == meta
  assert {n: (s.shape, s.dtype) for n, s in specs.items()} == {
    n: (x.shape, x.dtype) for n, x in state.items()
  }


def test_structure_of_the_caller_is_kept(tmp_path, mesh):
  optax = pytest.importorskip("optax")
  params = {"a": {"w": jnp.arange(6.0).reshape(2, 3)}, "b": jnp.float32(2)}
  state = {"params": params, "opt": optax.adam(1e-3).init(params)}
  manager = native.Checkpointer(tmp_path)
  manager.save(1, state, {})
  found, _ = manager.restore(worker.like(state))
  assert jax.tree.structure(found) == jax.tree.structure(state)
  chex_equal = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), found, state)
  assert jax.tree.all(chex_equal)
  part, _ = manager.restore({"params": worker.like(params)}, only="params")
  assert jnp.array_equal(part["params"]["a"]["w"], params["a"]["w"])
  manager.close()


def test_donated_state_is_saved_as_it_was(tmp_path, mesh):
  """The buffers are overwritten while the save runs, and are still reused (no hidden reference)."""
  manager = native.Checkpointer(tmp_path, keep=20)
  step = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  state = {"w": jax.device_put(jnp.zeros((64, 4096)), sharding), "x": jnp.zeros((64, 4096))}

  def where(state):
    return [s.data.unsafe_buffer_pointer() for x in state.values() for s in x.addressable_shards]

  for i in range(1, 7):
    state = step(state)
    jax.block_until_ready(state)
    before = where(state)
    manager.save(i, state, {})
    state = step(state)
    jax.block_until_ready(state)
    assert before == where(state)
    state = jax.tree.map(lambda x: x - 1, state)
  manager.wait()
  for i in range(1, 7):
    found, _ = manager.restore(worker.like(state), step=i)
    assert all(bool((x == i).all()) for x in found.values()), i
  manager.close()


def test_accelerators_stage_in_pinned_memory(tmp_path, mesh, monkeypatch):
  """The way of a GPU or TPU, which CPU devices can go too."""
  monkeypatch.setattr("bigvlm.ckpt.staging._on_cpu", lambda x: False)
  manager = native.Checkpointer(tmp_path)
  state = worker.state(5, mesh)
  manager.save(1, {name: x.copy() for name, x in state.items()}, {})
  found, _ = manager.restore(worker.like(state))
  assert worker.equal(found, state)
  manager.close()


def test_keep_and_keep_every(tmp_path):
  manager = native.Checkpointer(tmp_path, keep=2, keep_every=4)
  for step in range(1, 11):
    manager.save(step, {"w": jnp.full((4,), step)}, {})
  manager.wait()
  assert manager.steps() == [4, 8, 9, 10]
  assert manager.latest() == 10
  assert not [p for p in tmp_path.iterdir() if "tmp" in p.name]
  manager.close()


def test_same_step_again_replaces(tmp_path):
  manager = native.Checkpointer(tmp_path)
  like = {"w": jax.ShapeDtypeStruct((4,), jnp.int32, sharding=jnp.zeros(1).sharding)}
  for value in (1, 2):
    manager.save(3, {"w": jnp.full((4,), value, jnp.int32)}, {"value": value})
  found, meta = manager.restore(like)
  assert meta == {"value": 2} and found["w"].tolist() == [2] * 4
  assert manager.steps() == [3]
  # Killed after the old one was moved aside: it comes back at the next start.
  (tmp_path / "3").rename(tmp_path / "3.replaced")
  assert native.Checkpointer(tmp_path).latest() == 3
  manager.close()


def test_only_complete_checkpoints_count(saved):
  manager, state = saved
  for name in ("7.orbax-checkpoint-tmp", "8", "9.orbax-checkpoint-tmp-12"):
    (manager.directory / name / "state").mkdir(parents=True)
  assert manager.steps() == [5]
  with manager._lock() as free:
    assert free
    native.Checkpointer(manager.directory)  # Somebody is saving: nothing is removed.
    assert (manager.directory / "7.orbax-checkpoint-tmp").exists()
  native.Checkpointer(manager.directory)
  assert sorted(p.name for p in manager.directory.iterdir()) == [".lock", "5", "8"]
  with pytest.raises(native.CheckpointError, match=r"checkpoint 8 .* is not there.*\[5\]"):
    manager.restore(worker.like(state), step=8)
  with pytest.raises(native.CheckpointError, match="no complete checkpoint"):
    native.Checkpointer(manager.directory / "none").restore(worker.like(state))


def _edit(like, name, **changes):
  spec = dict(shape=like[name].shape, dtype=like[name].dtype, sharding=like[name].sharding)
  like[name] = jax.ShapeDtypeStruct(**(spec | changes))


def test_strict_names_shapes_dtypes(saved, mesh):
  manager, state = saved
  replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def refused(like, message):
    with pytest.raises(native.CheckpointError, match=message) as caught:
      manager.restore(like)
    assert "\n" not in str(caught.value) and "checkpoint 5" in str(caught.value)

  like = worker.like(state)
  like["params/wide"] = like.pop("params/w")
  refused(like, r"'params/wide' is missing; did you mean 'params/w'\? \(and 1 more\)")
  like = worker.like(state)
  del like["params/half"]
  refused(like, "'params/half' is not wanted")
  like = worker.like(state)
  _edit(like, "params/w", shape=(1024, 512), sharding=replicated)
  refused(like, r"'params/w' has shape \(1024, 768\), but \(1024, 512\) is wanted")
  like = worker.like(state)
  _edit(like, "params/w", dtype=jnp.bfloat16)
  refused(like, "'params/w' has dtype float32, but bfloat16 is wanted")


def test_what_cannot_be_saved_is_named(tmp_path):
  manager = native.Checkpointer(tmp_path)
  with pytest.raises(TypeError, match="'a/n' is a int"):
    manager.save(1, {"a": {"n": 3}}, {})
  with pytest.raises(TypeError, match="'key' is a PRNG key; save jax.random.key_data"):
    manager.save(1, {"key": jax.random.key(0)}, {})
  with pytest.raises(ValueError, match=r"'w' has shape \(0,\)"):
    manager.save(1, {"w": jnp.zeros((0,))}, {})
  with pytest.raises(ValueError, match="'a/b.c' and 'a.b/c'|'a.b/c' and 'a/b.c'"):
    manager.save(1, {"a": {"b.c": jnp.ones(1)}, "a.b": {"c": jnp.ones(1)}}, {})
  with pytest.raises(ValueError, match="did you mean 'sample'"):
    native.Checkpointer(tmp_path, verify="samples")
  assert manager.steps() == []


def test_flipped_bytes_of_data_are_refused_by_tensor(tmp_path, devices):
  """R7."""
  out = trials.flip_trials(40, tmp_path)
  assert out == dict(trials=40, refused=40, named=40, harmless=0, silent=0)


def test_flipped_bytes_of_any_file_are_never_silent(tmp_path, devices):
  out = trials.flip_trials(40, tmp_path, seed=1, everywhere=True)
  assert out["silent"] == 0 and out["refused"] + out["harmless"] == 40


def test_lost_file_is_refused_and_sample_finds_large_damage(saved):
  manager, state = saved
  folder = pathlib.Path(manager.directory) / "5" / "state"
  files = [p for p in (folder / "params.w").iterdir() if not p.name.startswith(".")]
  for file in files:
    file.write_bytes(file.read_bytes()[::-1])
  manager.restore(worker.like(state), verify="off")
  with pytest.raises(native.CheckpointError, match="damaged: tensor 'params/w'"):
    manager.restore(worker.like(state), verify="sample")
  files[0].unlink()
  with pytest.raises(native.CheckpointError, match="checkpoint 5 in .* cannot be read.*params.w"):
    manager.restore(worker.like(state), verify="off")


def test_failed_save_is_reported_by_the_next_call(tmp_path, monkeypatch):
  """R2b, in the order of calls a trainer makes: the next save reports and begins all the same."""
  manager = native.Checkpointer(tmp_path, keep=1)
  manager.save(1, {"w": jnp.ones(4)}, {})
  manager.wait()
  with monkeypatch.context() as patch:

    def full(*args):
      raise OSError(28, "No space left on device")

    patch.setattr("bigvlm.ckpt.digests.write_process", full)
    manager.save(2, {"w": jnp.ones(4) * 2}, {})
    with pytest.raises(native.CheckpointError, match=r"checkpoint 2 .*No space left.*\[1\]"):
      while not manager.poll():
        pass
    assert manager.poll() and manager.latest() == 1  # Reported once.
    manager.save(3, {"w": jnp.ones(4) * 3}, {})
    manager._thread.join()
  with pytest.raises(native.CheckpointError, match="checkpoint 3 .* was not saved"):
    manager.save(4, {"w": jnp.ones(4) * 4}, {})
  manager.close()
  assert manager.steps() == [4]
  assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "4"]


def test_full_disk(tmp_path):
  """R2b: real write errors, in one process and in either of two; both report, none hangs."""
  for seen in trials.full_disk_trials(tmp_path):
    assert "checkpoint 2 " in seen["error"] and "\n" not in seen["error"], seen
    assert seen["latest"] == 1 and seen["survivor"], seen
    assert seen["after"] == 3 and seen["next"], seen


def test_sigkill_during_saves(tmp_path):
  """R2."""
  out = trials.kill_trials(5, tmp_path)
  assert out["good"] == 5 and out["lost"] <= 2 and out["left"] == 0, out


def test_other_meshes_and_process_counts(tmp_path):
  """R4: to fewer devices, to another mesh, from two processes to one and back."""
  out = trials.reshard_trials([(0, 3), (1, 2), (4, 2), (2, 4)], tmp_path)
  assert out == {"pairs": 4, "equal": 4, "digests": 1}


def test_fsdp_to_replicated(saved, mesh):
  manager, state = saved
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  wanted = {name: jax.device_put(x, everywhere) for name, x in state.items()}
  found, _ = manager.restore(worker.like(wanted))
  assert worker.equal(found, wanted)


def test_manifest_is_of_the_values_only(tmp_path, mesh):
  """Digests are xxh3_64 of tiles of the logical tensor: another reader can check them."""
  import xxhash

  manager = native.Checkpointer(tmp_path)
  value = np.arange(1024 * 768, dtype=np.float32).reshape(1024, 768)
  spec = jax.sharding.PartitionSpec("fsdp", "data")
  manager.save(1, {"w": jax.device_put(value, jax.sharding.NamedSharding(mesh, spec))}, {})
  manager.close()
  path = pathlib.Path(tmp_path) / "1" / "manifest" / "manifest.json"
  entry = json.loads(path.read_text())["tensors"]["w"]
  rows, columns = entry["tiles"]
  tiles = [
    np.ascontiguousarray(part)
    for band in np.array_split(value, rows, axis=0)
    for part in np.array_split(band, columns, axis=1)
  ]
  assert entry["xxh3_64"] == "".join(xxhash.xxh3_64_hexdigest(t) for t in tiles)
