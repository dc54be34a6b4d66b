"""Collectives that objectives say themselves: cutting a batch, passing parts around a ring."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from bigvlm.parallel import mesh as mesh_lib


def parts(mesh: Mesh | None) -> int:
  """Into how many parts the batch is cut; 1 without a mesh."""
  return 1 if mesh is None else mesh_lib.batch_size(mesh)


def over_batch(fn: Callable, mesh: Mesh | None, cut: Any, out: Any) -> Callable:
  """Runs `fn` once for each part of the batch.

  Args:
    fn: function of arrays, given the local part of every cut argument.
    mesh: the mesh; without one, or with one part, `fn` itself comes back.
    cut: tuple of bool, one an argument: is its first axis the batch?
    out: pytree of bool for the results, likewise; a result that is not cut must be
      equal on all parts (sum it with `total`).

  Returns:
    A function of the global arrays.
  """
  if parts(mesh) == 1:
    return fn
  specs = {True: PartitionSpec(mesh_lib.batch_axes), False: PartitionSpec()}
  cut, out = jax.tree.map(specs.get, (cut, out))
  return jax.shard_map(fn, mesh=mesh, in_specs=cut, out_specs=out, check_vma=False)


def total(x: Any, mesh: Mesh | None) -> Any:
  """Sum over the parts of the batch, inside `over_batch`."""
  return x if parts(mesh) == 1 else lax.psum(x, mesh_lib.batch_axes)


def ring(step: Callable, state: Any, moving: Any, mesh: Mesh | None) -> tuple[Any, Any]:
  """Lets every part meet every other, inside `over_batch`.

  Args:
    step: `(state, moving, hops) -> (state, moving)`, where `moving` began `hops`
      devices behind this one (0 = it is this device's own). What a step adds to
      `moving` travels with it.
    state: pytree that stays here.
    moving: pytree that goes around; each device holds one part of it at a time.
    mesh: the mesh.

  Returns:
    `(state, moving)` after all the steps, `moving` back home.
  """
  n = parts(mesh)
  if n == 1:
    return step(state, moving, 0)
  forward = [(i, (i + 1) % n) for i in range(n)]

  def body(hops, carry):
    here, gone = step(*carry, hops)
    return here, lax.ppermute(gone, mesh_lib.batch_axes, forward)

  return lax.fori_loop(0, n, body, (state, moving))
