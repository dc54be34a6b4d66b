"""Decoders by fields: several axes of positions, tables of positions, norms that come after."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm import build, testing
from bigvlm.layers import blocks
from bigvlm.types import Batch, MaskSpec, Text

SIZES = dict(
  kind="decoder", vocab=50, width=24, depth=2, hidden=40, heads=4, kv_heads=2, head_dim=8
)
KINDS = {
  "axes": dict(rotary=dict(sections=(1, 1, 2))),
  "part": dict(rotary=dict(dim=4), parallel=True, tied=False, head_bias=True),
  "table": dict(rope_base=0.0, posemb=20, posemb_offset=2, norm="layer", embed_dim=12),
  "after": dict(rope_base=0.0, posemb=20, norm="layer", norm_after=True, final_norm=False),
  "bare": dict(norm="layer_bare", act="relu2", gated=False),
  "windows": dict(windows=(3, 0), depth=3),
}


def lm(layers="loop", **fields):
  config = dict(kind="lm", decoder=SIZES | dict(embed_scale=False) | fields)
  module = build.model(config, layers=layers)
  params = jax.jit(module.init)(jax.random.key(0), text(np.zeros((1, 4), int)))["params"]
  return module, testing.shaken(params)


def text(tokens, positions=None, read=None):
  rows, length = tokens.shape
  order = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
  mask = MaskSpec(np.ones_like(order), order, order)
  positions = order if positions is None else positions.astype(np.int32)
  read = order if read is None else read
  return Batch(Text(tokens.astype(np.int32), mask, positions, np.full_like(order, -1), read), {})


@pytest.mark.parametrize("kind", KINDS)
def test_steps_go_on_where_the_prefill_ended(kind):
  module, params = lm(**KINDS[kind])
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 50, (2, 9))
  positions = None
  if kind == "axes":  # A picture of 1 x 2 x 3 after two words; text goes on behind its largest.
    picture = np.stack(np.mgrid[:1, :2, :3], axis=-1).reshape(6, 3) + 2
    line = np.concatenate([[[0] * 3, [1] * 3], picture, [[5] * 3]])
    positions = np.broadcast_to(line, (2, 9, 3))
  apply = jax.jit(module.apply)
  whole = apply({"params": params}, text(tokens, positions)).logits
  front = None if positions is None else positions[:, :8]
  batch = text(tokens[:, :8], front, np.full((2, 1), 7, np.int32))
  out = apply({"params": params}, batch, cache=module.decoder.init_cache(2, 9))
  np.testing.assert_allclose(out.logits[:, 0], whole[:, 7], atol=1e-4)
  logits, _ = module.apply({"params": params}, tokens[:, 8], out.cache, method="step")
  np.testing.assert_allclose(logits, whole[:, 8], atol=1e-4)


@pytest.mark.parametrize("layers", ["loop", "scan"])
@pytest.mark.parametrize("kind", ["part", "after", "windows"])
def test_a_prefill_gives_the_states_that_are_read_and_no_others(kind, layers):
  module, params = lm(layers, **KINDS[kind])
  tokens, read = np.random.default_rng(0).integers(0, 50, (2, 8)), np.array([[3, 7], [0, 5]])
  batch, apply = text(tokens, read=read.astype(np.int32)), jax.jit(module.apply)
  whole = apply({"params": params}, batch)
  out = apply({"params": params}, batch, cache=module.decoder.init_cache(2, 8))
  assert whole.hidden.shape == (2, 8, 24) and out.hidden.shape == (2, 2, 24)
  np.testing.assert_allclose(out.hidden, whole.hidden[np.arange(2)[:, None], read], atol=1e-4)
  np.testing.assert_allclose(out.logits, whole.logits, atol=1e-4)


def test_a_position_is_a_row_of_the_table():
  module, params = lm(**KINDS["table"])
  tokens = np.array([[3, 4, 5]])
  moved = text(tokens, np.array([[6, 7, 8]]))
  table = params["decoder"]["posemb"]
  shifted = params | {"decoder": params["decoder"] | {"posemb": jnp.roll(table, -6, axis=0)}}
  want = module.apply({"params": params}, moved).logits
  got = module.apply({"params": shifted}, text(tokens)).logits
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.abs(module.apply({"params": params}, text(tokens)).logits - want).max() > 1e-3


def test_norms_that_come_after_are_the_last_of_a_layer():
  module, params = lm(**KINDS["after"])
  x = module.apply({"params": params}, text(np.arange(12).reshape(2, 6))).hidden
  norm = params["decoder"]["blocks"]["g0"]["b0"]["norm2"]
  y = (x - norm["bias"][1]) / norm["scale"][1]
  np.testing.assert_allclose(y.mean(-1), 0, atol=1e-4)
  np.testing.assert_allclose(y.std(-1), 1, atol=1e-3)


def test_tied_logits_may_have_a_bias():
  module, params = lm(head_bias=True)
  decoder, apply = params["decoder"], jax.jit(module.apply)
  none = params | {"decoder": decoder | {"head_bias": jnp.zeros(50)}}
  y, z = (apply({"params": p}, text(np.arange(8).reshape(2, 4))).logits for p in (params, none))
  np.testing.assert_allclose(y - z, np.broadcast_to(decoder["head_bias"], y.shape), atol=1e-5)


def test_layers_alike_in_long_runs_are_a_group_a_run():
  near, far = blocks.Kind(4), blocks.Kind()
  assert blocks.periodic((far, far, far, near), 4) == (((far,), 3), ((near,), 1))
  assert blocks.periodic((near, far), 5) == (((near, far), 2), ((near,), 1))
  assert blocks.periodic((near, far), 2) == (((near, far), 1),)
