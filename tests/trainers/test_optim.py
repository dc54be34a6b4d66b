"""What one update does to each parameter, against formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.configs import common
from bigvlm.trainers import optim
from bigvlm.utils import tree as tree_lib

RNG = np.random.default_rng(0)
PARAMS = {
  "image": {"kernel": RNG.normal(size=(3, 4)), "bias": RNG.normal(size=(4,))},
  "text": {"kernel": RNG.normal(size=(4, 2))},
}
PARAMS = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
GRADS = [jax.tree.map(lambda x, k=k: jnp.cos(x + k), PARAMS) for k in range(3)]
FLAT = dict(kind="constant", warmup=0.0)


def stage(**fields):
  return common.stage(**{"schedule": FLAT, "grad_clip": 0.0, "lr": 0.1, **fields}).to_dict()


def run(cfg, grads=GRADS, params=PARAMS, total=10):
  tx = optim.make(cfg, params, total, "stages[0]")
  state, out = tx.init(params), []
  for step, g in enumerate(grads):
    updates, state = tx.update(g, state, params, step=jnp.int32(step))
    out.append(tree_lib.flatten(updates))
  return out, state


def close(a, b, rtol=1e-5):
  np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=1e-7)


def test_adam_is_the_papers():
  got, state = run(stage(optimizer=dict(kind="adam", b1=0.8, b2=0.9, eps=1e-3)))
  mu = nu = 0.0
  for t, grads in enumerate(GRADS, 1):
    g = np.asarray(grads["image"]["kernel"], np.float64)
    mu, nu = 0.8 * mu + 0.2 * g, 0.9 * nu + 0.1 * g * g
    want = -0.1 * (mu / (1 - 0.8**t)) / (np.sqrt(nu / (1 - 0.9**t)) + 1e-3)
    close(got[t - 1]["image/kernel"], want)
  assert int(state["count"]) == 3


def test_adam_keeps_the_second_moment_in_float32():
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  _, state = run(stage(optimizer=dict(kind="adam", mu_dtype="bfloat16")), params=params)
  assert {x.dtype for x in jax.tree.leaves(state["mu"])} == {jnp.dtype("bfloat16")}
  assert {x.dtype for x in jax.tree.leaves(state["nu"])} == {jnp.dtype("float32")}


def test_muon_makes_the_matrices_of_layers_orthogonal_and_leaves_the_rest_to_adam():
  def blocks(**kernels):
    return {
      "blocks": {"g0": {n: {"kernel": jnp.asarray(k, jnp.float32)} for n, k in kernels.items()}}
    }

  params = blocks(
    q=RNG.normal(size=(2, 6, 2, 4)), o=RNG.normal(size=(2, 2, 4, 6)), up=RNG.normal(size=(2, 6, 9))
  )
  params["embed"] = jnp.asarray(RNG.normal(size=(5, 6)), jnp.float32)
  grads = jax.tree.map(jnp.sin, params)
  cfg = stage(optimizer=dict(kind="muon", b1=0.9, b2=0.95))
  (first, second), state = run(cfg, [grads, grads], params)
  flat = dict(q=(2, 6, 8), o=(2, 8, 6), up=(2, 6, 9))
  for name, shape in flat.items():
    g = np.asarray(grads["blocks"]["g0"][name]["kernel"]).reshape(shape)
    for update in (first, second):  # The same gradient twice: the same direction.
      got = np.asarray(update[f"blocks/g0/{name}/kernel"]).reshape(shape)
      for layer in range(2):
        u, _, vt = np.linalg.svd(g[layer], full_matrices=False)
        gains = u.T @ got[layer] @ vt.T / (-0.1 * 0.2 * max(shape[1:]) ** 0.5)
        diagonal = np.diag(gains)
        assert (diagonal > 0.6).all() and (diagonal < 1.3).all()
        np.testing.assert_allclose(gains - np.diag(diagonal), 0, atol=2e-3)
  alone = {"embed": params["embed"]}, [{"embed": grads["embed"]}]
  adam, _ = run(stage(optimizer=dict(kind="adam", b1=0.9, b2=0.95)), alone[1], alone[0])
  close(first["embed"], adam[0]["embed"])
  assert tree_lib.names(state["mu"]) == [f"blocks/g0/{n}/kernel" for n in ("o", "q", "up")]


def test_adafactor_is_big_visions():
  """Factored second moment, decay capped, bf16 momentum without bias correction."""
  params = {"w": jnp.asarray(RNG.normal(size=(32, 40)), jnp.float32)}
  grads = [{"w": jnp.sin(params["w"] * (k + 1))} for k in range(4)]
  cfg = stage(optimizer=dict(kind="adafactor", beta2_cap=0.3, momentum=0.5))
  got, state = run(cfg, grads, params)
  row = col = 0.0
  mom = np.zeros((32, 40))
  for t, g in enumerate(grads):
    g = np.asarray(g["w"], np.float64)
    decay = min(0.3, 1 - (t + 1.0) ** -0.8)
    row = decay * row + (1 - decay) * (g * g).mean(1)
    col = decay * col + (1 - decay) * (g * g).mean(0)
    update = g * (row / row.mean())[:, None] ** -0.5 * col[None] ** -0.5
    want = 0.5 * mom + 0.5 * update
    close(got[t]["w"], -0.1 * want, rtol=2e-2)  # bfloat16 carries 8 bits.
    mom = np.asarray(jnp.asarray(want, jnp.bfloat16), np.float64)
  sizes = sorted(x.size for x in jax.tree.leaves(state) if x.size > 1)
  assert sizes == [32, 40, 32 * 40]  # Rows, columns, momentum: no full second moment.
  assert state[1].ema["w"].dtype == jnp.bfloat16


def test_adafactor_does_not_inherit_adams_numbers():
  """Every stage record carries adam's b2 and eps; they must not leak into other kinds."""
  params = {"w": jnp.ones((4,))}
  tiny = [{"w": jnp.full((4,), 1e-6)}]  # eps = 1e-8 would swamp its square.
  got, _ = run(stage(optimizer=dict(kind="adafactor", momentum=0.0)), tiny, params)
  close(got[0]["w"], np.full(4, -0.1), rtol=1e-3)


def test_momentum_and_sgd():
  got, _ = run(stage(optimizer=dict(kind="momentum", b1=0.5)))
  g = [np.asarray(x["text"]["kernel"]) for x in GRADS]
  close(got[2]["text/kernel"], -0.1 * (0.25 * g[0] + 0.5 * g[1] + g[2]))
  got, state = run(stage(optimizer=dict(kind="sgd")))
  close(got[1]["text/kernel"], -0.1 * g[1])
  assert not jax.tree.leaves(state)


def test_decay_is_times_the_schedule_but_not_the_learning_rate():
  cfg = dict(optimizer=dict(kind="sgd"), weight_decay=((".*/kernel", 0.01),))
  zero = [jax.tree.map(jnp.zeros_like, PARAMS)] * 3
  for lr in (0.1, 7.0):
    linear = dict(kind="linear", warmup=0.0)
    got, _ = run(stage(lr=lr, schedule=linear, **cfg), zero)
    for step in range(3):
      close(got[step]["text/kernel"], -(1 - step / 10) * 0.01 * PARAMS["text"]["kernel"])
      assert not np.any(got[step]["image/bias"])


def test_first_matching_multiplier_wins():
  mults = (("image/kernel", 0.5), ("image/.*", 3.0))
  got, _ = run(stage(optimizer=dict(kind="sgd"), lr_mults=mults))
  close(got[0]["image/kernel"], -0.05 * GRADS[0]["image"]["kernel"])
  close(got[0]["image/bias"], -0.3 * GRADS[0]["image"]["bias"])
  close(got[0]["text/kernel"], -0.1 * GRADS[0]["text"]["kernel"])


def test_a_group_warms_up_slowly():
  groups = (("image/.*", dict(warmup=8.0)),)
  cfg = stage(optimizer=dict(kind="sgd"), schedule=dict(FLAT, groups=groups))
  got, _ = run(cfg)
  close(got[2]["image/bias"], -0.1 * 2 / 8 * GRADS[2]["image"]["bias"])
  close(got[2]["text/kernel"], -0.1 * GRADS[2]["text"]["kernel"])


def test_clip_is_by_the_norm_over_all_leaves():
  norm = np.sqrt(sum(float(jnp.sum(g * g)) for g in jax.tree.leaves(GRADS[0])))
  got, _ = run(stage(optimizer=dict(kind="sgd"), grad_clip=norm / 4))
  close(got[0]["image/bias"], -0.1 / 4 * GRADS[0]["image"]["bias"])
  got, _ = run(stage(optimizer=dict(kind="sgd"), grad_clip=norm * 2))
  close(got[0]["image/bias"], -0.1 * GRADS[0]["image"]["bias"])


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    (dict(optimizer=dict(kind="adma")), r"stages\[0\].optimizer.kind: unknown optimizer 'adma'"),
    (dict(optimizer=dict(kind="adam", beta=1)), r"optimizer: unknown adam field 'beta'"),
    (dict(lr_mults=(("imgae/.*", 2.0),)), r"stages\[0\].lr_mults: the pattern 'imgae/\.\*'.*image"),
    (dict(weight_decay=(("kernel", 1.0),)), r"stages\[0\].weight_decay: the pattern 'kernel'"),
    (
      dict(schedule=dict(FLAT, groups=(("decoder/.*", {}),))),
      r"stages\[0\].schedule.groups: the pattern 'decoder/\.\*' matches no parameter",
    ),
  ],
)
def test_errors_name_the_field(fields, said):
  with pytest.raises(ValueError, match=said):
    optim.make(stage(**fields), PARAMS, 10, "stages[0]")
