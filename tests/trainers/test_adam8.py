"""Adam with a byte a moment: how near it is to Adam, what it holds, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.configs import common
from bigvlm.trainers import adam8, optim

SHAPES = {"wide": (16, 512), "odd": (70, 96), "bias": (96,)}


def leaves(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return {n: jnp.asarray(scale * rng.standard_normal(s), jnp.float32) for n, s in SHAPES.items()}


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_packing_is_right_on_average_and_within_a_level(dtype):
  x = leaves(0)["wide"] * jnp.exp(leaves(1)["wide"])  # Over several orders of magnitude.
  x = jnp.abs(x) if dtype == jnp.uint8 else x
  packed = [adam8.pack(x, dtype, jax.random.key(n)) for n in range(200)]
  back = np.stack([np.asarray(adam8.unpack(*p)) for p in packed])
  top = np.abs(np.asarray(x)).reshape(16, 2, 256).max(-1).repeat(256, -1).reshape(16, 512)
  most = jnp.iinfo(dtype).max
  root = np.sqrt(np.abs(x) / top)
  step = top * (2 * root / most + 1 / most**2)
  assert (np.abs(back - np.asarray(x)) <= step * 1.001).all()
  # A square is convex: by at most a quarter of a squared level too much, and no drift beside it.
  assert np.abs(back.mean(0) - np.asarray(x)).max() < (step.max() / 200**0.5) * 4
  if dtype == jnp.uint8:
    assert (back[:, np.asarray(x) > 0] > 0).all()


def test_the_state_is_a_quarter_of_adams():
  params = leaves(0)
  small, large = (make().init(params) for make in (adam8.adam8, optim.adam))
  held, usual = (sum(x.nbytes for x in jax.tree.leaves(s)) for s in (small, large))
  assert held < 0.28 * usual
  assert small["mu"]["wide"].dtype == jnp.int8 and small["nu"]["odd"].dtype == jnp.uint8
  assert small["mu"]["bias"].dtype == jnp.float32
  assert small["mu"]["wide"].shape == SHAPES["wide"]


def test_its_first_step_is_adams():
  grads = leaves(2)
  ours, theirs = (make().update(grads, make().init(grads)) for make in (adam8.adam8, optim.adam))
  for name, x in theirs[0].items():
    np.testing.assert_allclose(ours[0][name], x, rtol=1e-5)


def test_it_learns_as_adam_does():
  target, rng = leaves(3), np.random.default_rng(4)
  noise = [
    {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in SHAPES.items()}
    for _ in range(150)
  ]
  ends = {}
  for kind in ("adam", "adam8"):
    stage = common.stage(
      lr=0.02,
      grad_clip=0.0,
      schedule=dict(kind="cosine", warmup=0.0),
      optimizer=dict(kind=kind, b2=0.99),
    ).to_dict()
    params = jax.tree.map(jnp.zeros_like, target)
    tx = optim.make(stage, params, 150)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step, extra in enumerate(noise):
      grads = jax.tree.map(lambda p, t, e: p - t + 0.3 * e, params, target, extra)
      updates, state = update(grads, state, params, step=jnp.int32(step))
      params = jax.tree.map(jnp.add, params, updates)
    off = jax.tree.map(lambda p, t: jnp.mean(jnp.square(p - t)), params, target)
    ends[kind] = {name: float(x) for name, x in off.items()}
  for name in SHAPES:
    assert ends["adam8"][name] < 1.2 * ends["adam"][name] + 1e-4
    assert ends["adam8"][name] < 0.3


def test_the_same_step_rounds_the_same_way():
  grads = leaves(5)
  tx = adam8.adam8()
  a, b = (tx.update(grads, tx.init(grads))[1] for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, a, b)
