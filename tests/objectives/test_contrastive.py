"""Both contrastive losses: values and gradients on 1 to 8 devices, memory, bad rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm import types
from bigvlm.objectives import sigmoid, softmax, table
from bigvlm.parallel import mesh as mesh_lib

N, WIDTH = 48, 16
MESHES = {
  1: dict(data=1),
  2: dict(data=2),
  4: dict(data=2, fsdp=2),
  8: dict(data=4, fsdp=2),
}
BAD = [3, 17, 47]


def run(kind, args, valid, mesh, chunk):
  """(loss, (hits, count)), gradients for all of `args`; args float: image, text, scale[, bias]."""
  fn = dict(sigmoid=sigmoid.sigmoid_loss, softmax=softmax.softmax_loss)[kind]

  def loss(*args):
    value, *aux = fn(*args, valid, mesh, chunk)
    return value, aux

  which = tuple(range(len(args)))
  return jax.jit(jax.value_and_grad(loss, argnums=which, has_aux=True))(*args)


def inputs(references, kind, n=N, scale=8.0, dtype=np.float32):
  x, y = references.embeddings(n, WIDTH)
  x, y = (np.asarray(jnp.asarray(a, dtype)).astype(np.float64) for a in (x, y))
  scalars = (scale, -3.0) if kind == "sigmoid" else (scale,)
  args = [jnp.asarray(a, dtype) for a in (x, y)] + [jnp.float32(s) for s in scalars]
  return (x, y, *scalars), args


def check(references, kind, raw, found, valid, tolerance):
  (loss, (hits, count)), grads = found
  want = getattr(references, kind)(*raw, valid)
  for name, a, b in zip(
    ("loss", "image", "text", "scale", "bias"), (loss, *grads), want, strict=False
  ):
    a = np.asarray(a, np.float64)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)
  keep = np.flatnonzero(valid)
  best = (raw[0][keep] @ raw[1][keep].T).argmax(1)
  assert hits == (best == np.arange(len(keep))).sum()
  assert count == len(keep)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize(
  "devices,chunk", [(1, 0), (1, 16), (1, 7), (2, 8), (2, 7), (4, 12), (8, 6), (8, 4)]
)
def test_matches_float64_numpy_on_any_number_of_devices(references, kind, devices, chunk):
  raw, args = inputs(references, kind)
  valid = np.ones(N)
  valid[BAD] = 0
  found = run(kind, args, valid, mesh_lib.make(MESHES[devices]), chunk)
  check(references, kind, raw, found, valid, 2e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_tensor_axis_does_not_change_the_loss(references, kind):
  raw, args = inputs(references, kind)
  found = run(kind, args, np.ones(N), mesh_lib.make(dict(data=2, fsdp=2, tensor=2)), 6)
  check(references, kind, raw, found, np.ones(N), 2e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_what_an_invalid_row_holds_does_not_matter(references, kind):
  raw, args = inputs(references, kind)
  valid = np.ones(N)
  valid[BAD] = 0
  args[0], args[1] = args[0].at[BAD[0]].set(jnp.nan), args[1].at[BAD[1]].set(1e30)
  raw = (raw[0].copy(), *raw[1:])
  found = run(kind, args, valid, mesh_lib.make(MESHES[4]), 8)
  check(references, kind, raw, found, valid, 2e-6)
  for grad in found[1][:2]:
    assert not np.asarray(grad)[BAD].any()


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_no_valid_row_gives_zero(references, kind):
  _, args = inputs(references, kind)
  (loss, (hits, count)), grads = run(kind, args, np.zeros(N), None, 16)
  assert loss == hits == count == 0
  assert not any(np.asarray(g).any() for g in grads)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_bfloat16_embeddings_are_summed_in_float32(references, kind):
  raw, args = inputs(references, kind, dtype=jnp.bfloat16)
  found = run(kind, args, np.ones(N), mesh_lib.make(MESHES[2]), 8)
  assert found[1][0].dtype == jnp.bfloat16 and found[0][0].dtype == jnp.float32
  # The products of bf16 numbers are exact in float32: the loss is as good as in float32.
  want = getattr(references, kind)(*raw, np.ones(N))
  np.testing.assert_allclose(found[0][0], want[0], rtol=2e-6)
  for a, b in zip(found[1][:2], want[1:3], strict=True):
    error = np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
    assert error < 6e-3  # bf16 rounds to 2^-9.


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_every_product_of_bfloat16_asks_for_a_float32_sum(references, kind):
  _, args = inputs(references, kind, dtype=jnp.bfloat16)
  fn = dict(sigmoid=sigmoid.sigmoid_loss, softmax=softmax.softmax_loss)[kind]
  step = jax.jit(jax.grad(lambda *args: fn(*args, np.ones(N), None, 16)[0], argnums=(0, 1)))
  products = [line for line in step.lower(*args).as_text().split("\n") if "dot_general" in line]
  assert len(products) >= 3
  assert all(line.split("->")[-1].strip().split(" ")[0].endswith("xf32>") for line in products)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_large_logits_stay_finite_and_right(references, kind):
  raw, args = inputs(references, kind, scale=300.0)
  check(references, kind, raw, run(kind, args, np.ones(N), None, 16), np.ones(N), 5e-5)


def test_sigmoid_loss_of_untrained_towers():
  x, y = np.split(np.eye(1024, dtype=np.float32), 2)  # All orthogonal, pairs too.
  loss = jax.jit(lambda *args: sigmoid.sigmoid_loss(*args)[0])
  np.testing.assert_allclose(loss(x, y, 10.0, -10.0, np.ones(512)), 10.0232, atol=1e-4)
  np.testing.assert_allclose(loss(x, y, 10.0, 0.0, np.ones(512)), 512 * np.log(2), rtol=1e-6)


def compiled(kind, n, mesh, chunk):
  rows = mesh_lib.batch_sharding(mesh)
  wide = jax.ShapeDtypeStruct((n, WIDTH), jnp.float32, sharding=rows)
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=mesh_lib.replicated(mesh))
  valid = jax.ShapeDtypeStruct((n,), jnp.float32, sharding=rows)
  if kind == "sigmoid":
    fn = lambda x, y, s, b, v: sigmoid.sigmoid_loss(x, y, s, b, v, mesh, chunk)[0]  # noqa: E731
    args = (wide, wide, scalar, scalar, valid)
  else:
    fn = lambda x, y, s, v: softmax.softmax_loss(x, y, s, v, mesh, chunk)[0]  # noqa: E731
    args = (wide, wide, scalar, valid)
  return jax.jit(jax.value_and_grad(fn, argnums=(0, 1))).lower(*args).compile()


def largest(program) -> int:
  """Elements of the largest array in a compiled program."""
  shapes = re.findall(r"[a-z]+[0-9]+\[([0-9,]+)\]", program.as_text())
  return max(int(np.prod([int(d) for d in shape.split(",")])) for shape in shapes)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_memory_is_a_few_tiles_not_all_pairs(kind):
  n, chunk = 4096, 128
  program = compiled(kind, n, mesh_lib.make(dict(data=1)), chunk)
  assert largest(program) <= n * chunk
  per_row = 4 * n * (2 * WIDTH + 16)
  assert program.memory_analysis().temp_size_in_bytes < 8 * 4 * chunk**2 + 2 * per_row


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_no_device_holds_the_global_batch(kind):
  n, chunk = 4096, 64
  program = compiled(kind, n, mesh_lib.make(dict(data=4, fsdp=2)), chunk)
  text = program.as_text()
  assert "collective-permute" in text
  assert "all-gather" not in text
  assert largest(program) <= max(chunk**2, n // 8 * WIDTH)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_objective_reads_heads_and_weights_of_a_batch(references, kind):
  mesh = mesh_lib.make(MESHES[2])
  raw, args = inputs(references, kind)
  heads = dict(image=args[0], text=args[1], scale=args[2], bias=jnp.float32(-3))
  weights = np.ones((N, 1), np.float32)
  weights[BAD] = 0
  objective = table.make(dict(kind=kind, chunk=8), mesh)
  loss, metrics = jax.jit(objective)(
    types.Outputs(heads=heads), types.Batch(None, {}, weights=weights)
  )
  want = getattr(references, kind)(*raw, weights[:, 0])
  np.testing.assert_allclose(loss, want[0], rtol=2e-6)
  assert metrics["accuracy"][1] == metrics["loss"][1] == N - len(BAD)
  np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], want[0], rtol=2e-6)
  assert 0 < metrics["accuracy"][0] < N - len(BAD)
  assert [float(v) for v in metrics["scale"]] == [8, 1]
  assert ("bias" in metrics) == (kind == "sigmoid")


def test_equal_embeddings_are_no_hits():
  same = jnp.ones((8, WIDTH)) / 4
  _, hits, _ = sigmoid.sigmoid_loss(same, same, jnp.float32(1), jnp.float32(0), jnp.ones(8))
  assert hits == 0
