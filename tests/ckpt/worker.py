"""A process that saves and restores, started by `trials.py`: `worker.py JOBS.json OUT_DIR`.

JOBS holds {"processes", "process", "port", "devices", "jobs": [...]}; what each job
gives is written to OUT_DIR/PROCESS.json after each job, since a worker may be killed.
"""

import json
import os
import pathlib
import resource
import sys


def state(seed: int, mesh):
  """Tensors of many dtypes and odd shapes, and how they are sharded on `mesh`."""
  import jax
  import ml_dtypes
  import numpy as np
  from jax.sharding import NamedSharding, PartitionSpec

  rng = np.random.default_rng(seed)
  both = ("data", "fsdp")
  tensors = {
    "params/w": (rng.standard_normal((1024, 768), np.float32), (both, None)),
    "params/columns": (rng.standard_normal((384, 512), np.float32), (None, both)),
    "params/half": (rng.standard_normal((48, 40)).astype(ml_dtypes.bfloat16), ("fsdp", "data")),
    "params/small": (rng.standard_normal((8, 3), np.float32), (both,)),
    "params/odd": (rng.standard_normal((5, 7, 3), np.float32), ()),
    "opt/0/mu": (rng.standard_normal((3, 128, 640), np.float32), (None, "data", "fsdp")),
    "opt/count": (np.int32(seed), ()),
    "mask": (rng.random((16, 24)) > 0.5, ("data",)),
    "key": (rng.integers(0, 1 << 32, 2, np.uint32), ()),
  }
  out = {}
  for name, (value, spec) in tensors.items():
    value = np.asarray(value)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    out[name] = jax.make_array_from_callback(value.shape, sharding, lambda i, v=value: v[i])
  return out


def make_mesh(shape):
  import jax
  import numpy as np

  devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
  return jax.sharding.Mesh(devices, ("data", "fsdp"))


def like(arrays):
  import jax

  def one(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

  return jax.tree.map(one, arrays)


def equal(a, b) -> bool:
  """Bitwise, dtype and sharding included, on the shards of this process."""
  import numpy as np

  def same(x, y):
    return (
      x.dtype == y.dtype
      and x.sharding == y.sharding
      and all(
        np.asarray(s.data).tobytes() == np.asarray(t.data).tobytes()
        for s, t in zip(x.addressable_shards, y.addressable_shards, strict=True)
      )
    )

  return set(a) == set(b) and all(same(a[n], b[n]) for n in a)


def save(job):
  from bigvlm.ckpt import native

  manager = native.Checkpointer(job["dir"])
  arrays = state(job["seed"], make_mesh(job["mesh"]))
  manager.save(job["step"], arrays, {"seed": job["seed"]})
  manager.close()
  path = pathlib.Path(job["dir"]) / str(job["step"]) / "manifest" / "manifest.json"
  tensors = json.loads(path.read_text())["tensors"]
  return {"digests": {name: entry["xxh3_64"] for name, entry in tensors.items()}}


def restore(job):
  from bigvlm.ckpt import native

  manager = native.Checkpointer(job["dir"])
  wanted = state(job["seed"], make_mesh(job["mesh"]))
  try:
    found, meta = manager.restore(like(wanted), verify="full")
  except native.CheckpointError as error:
    return {"error": str(error)}
  return {"equal": equal(found, wanted), "meta": meta}


def full_disk(job):
  """Saves three times; during the second one this process (or none) can write nothing large."""
  import jax

  from bigvlm.ckpt import native

  mesh = make_mesh(job["mesh"])
  manager = native.Checkpointer(job["dir"], keep=1)
  manager.save(1, state(1, mesh), {})
  manager.wait()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  out = {}
  if jax.process_index() == job["process"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
  try:
    manager.save(2, state(2, mesh), {})
    manager.wait()
  except native.CheckpointError as error:
    out["error"] = str(error)
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  out["latest"] = manager.latest()
  wanted = state(1, mesh)
  out["survivor"] = equal(manager.restore(like(wanted))[0], wanted)
  manager.save(3, state(3, mesh), {})
  manager.wait()
  out["after"] = manager.latest()
  wanted = state(3, mesh)
  out["next"] = equal(manager.restore(like(wanted))[0], wanted)
  manager.close()
  out["left"] = sorted(p.name for p in pathlib.Path(job["dir"]).iterdir())
  return out


def loop(job):
  """Restores and checks the newest checkpoint, then saves without end, until killed."""
  import jax
  import jax.numpy as jnp

  from bigvlm.ckpt import native

  directory = pathlib.Path(job["dir"])
  manager = native.Checkpointer(directory)
  left = [p.name for p in directory.iterdir() if "tmp" in p.name] if directory.exists() else []
  step = manager.latest()
  made = jax.jit(lambda i: {f"w{k}": jnp.full((job["rows"], 1024), i + k) for k in range(4)})
  good = True
  if step is not None:
    wanted = made(jnp.float32(step))
    found, meta = manager.restore(like(wanted), verify="full")
    good = equal(found, wanted) and meta == {"step": step}
  start = {"latest": step, "good": good, "left": left}
  pathlib.Path(job["started"]).write_text(json.dumps(start))
  if not job["saves"]:
    return start
  # Donated to the next step at once, as a trainer does: a save that did not copy would
  # write values of a later step.
  more = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
  step = step or 0
  arrays = made(jnp.float32(step))
  with open(job["progress"], "a") as progress:
    while True:
      step += 1
      arrays = more(arrays)
      progress.write(f"{step}\n")
      progress.flush()
      manager.save(step, arrays, {"step": step})


JOBS = {"save": save, "restore": restore, "full_disk": full_disk, "loop": loop}


def main(jobs_file: str, out: str) -> None:
  args = json.loads(pathlib.Path(jobs_file).read_text())
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args['devices']}"
  import jax

  if args["processes"] > 1:
    jax.distributed.initialize(
      f"localhost:{args['port']}", num_processes=args["processes"], process_id=args["process"]
    )
  results = []
  for job in args["jobs"]:
    results.append(JOBS[job["op"]](job))
    (pathlib.Path(out) / f"{args['process']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
  main(*sys.argv[1:])
