"""Cross-attention to pictures: who sees which, what those get that see none, cache, tiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm import build, generate, testing
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import memory_media
from bigvlm.layers import masks
from bigvlm.types import Batch, MaskSpec, Media, Text

VIT = dict(kind="vit", width=24, depth=1, hidden=32, heads=2, patch=4)
DECODER = dict(
  kind="decoder",
  vocab=43,
  extra_vocab=3,
  width=24,
  depth=5,
  hidden=40,
  heads=4,
  kv_heads=2,
  head_dim=6,
  tied=False,
  cross_layers=(1, 4),
)
TILED = dict(kind="tiled", width=24, depth=3, hidden=32, heads=2, patch=4, tiles=2, ways=4)
TILED |= dict(depth_global=1, keep=(2, 0), pad=4)
SEE = np.array([[[1, 0], [1, 1], [1, 1], [2, 2], [1, 2], [1, 2]]], np.int32)


def batch(see=SEE, seed=0, **extra):
  """One row of six tokens and two pictures; `read` is everywhere."""
  rng = np.random.default_rng(seed)
  length = see.shape[1]
  index = np.arange(length, dtype=np.int32)[None]
  tokens = rng.integers(0, 43, (1, length)).astype(np.int32)
  spec = MaskSpec(np.ones_like(index), index, index)
  pixels = rng.standard_normal((1, 2, 8, 8, 3)).astype(np.float32)
  media = {"image": Media(pixels, np.array([[1, 2]], np.int32))}
  return Batch(Text(tokens, spec, index, np.full_like(index, -1), index, see), media)


@functools.cache
def made(layers="loop", shake=True, **cross):
  cfg = dict(
    kind="vlm",
    encoders=dict(image=VIT),
    connector=dict(kind="plain"),
    fusion=dict(kind="memory"),
    decoder=DECODER | dict(cross=dict(width=24) | cross),
  )
  module = build.model(cfg, layers=layers)
  params = jax.jit(module.init)(jax.random.key(0), batch())["params"]
  return module, testing.shaken(params) if shake else params


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, given):
  return module.apply({"params": params}, given).logits


def other_picture(given, n):
  media = given.media["image"]
  return given.replace(media={"image": media.replace(pixels=media.pixels.at[:, n].add(1.0))})


def test_a_token_is_moved_by_the_pictures_it_sees_alone():
  module, params = made(blind="zero")
  given = jax.tree.map(jnp.asarray, batch())
  before = run(module, params, given)
  for picture, first in ((0, 1), (1, 3)):
    after = run(module, params, other_picture(given, picture))
    np.testing.assert_array_equal(after[:, :first], before[:, :first])
    assert np.abs(after[:, first] - before[:, first]).max() > 1e-4


def test_gates_that_are_shut_leave_the_text_model():
  module, params = made(shake=False)
  given = batch()
  np.testing.assert_array_equal(
    run(module, params, given), run(module, params, given.replace(media={}))
  )
  module, params = made()
  assert np.abs(run(module, params, given) - run(module, params, given.replace(media={}))).max() > 0


def test_parameters_do_not_depend_on_media_at_the_start():
  module, params = made()
  bare = jax.eval_shape(module.init, jax.random.key(0), batch().replace(media={}))["params"]
  assert jax.tree.map(jnp.shape, params["decoder"]) == jax.tree.map(jnp.shape, bare["decoder"])


@pytest.mark.parametrize("cross", [dict(blind="zero"), dict(blind="all", blind_mlp=False)])
def test_rows_that_see_nothing(cross):
  module, params = made(**cross)
  nothing = np.tile(np.array([1, 0], np.int32), (1, 6, 1))
  given = jax.tree.map(jnp.asarray, batch(nothing))
  before = run(module, params, given)
  moved = np.abs(run(module, params, other_picture(given, 1)) - before).max()
  assert (moved > 1e-4) == (cross["blind"] == "all")
  # The MLP of such a layer is open to them or not.
  blocks = params["decoder"]["blocks"]["g0"]["b1"]
  shut = jax.tree.map(jnp.asarray, params)
  shut["decoder"]["blocks"]["g0"]["b1"] = blocks | {"gate2": jnp.zeros_like(blocks["gate2"])}
  moved = np.abs(run(module, shut, given) - before).max()
  assert (moved > 1e-4) == cross.get("blind_mlp", True)


def test_steps_with_a_cache_equal_one_pass():
  module, params = made(blind="zero")
  given = batch()
  whole = run(module, params, given)
  text = given.text
  part = jax.tree.map(lambda x: x[:, :5], text).replace(read=np.array([[4]], np.int32))
  cut = generate.unstack(params)
  logits, cache = generate.prefill(module, cut, given.replace(text=part), 1)
  np.testing.assert_allclose(logits, whole[:, 4], atol=2e-5)
  kept = cache.layers["g0"]["0"]["b1"]["cross"]
  logits, cache = module.apply({"params": cut}, text.tokens[:, 5], cache, method="step")
  np.testing.assert_allclose(logits, whole[:, 5], atol=2e-5)
  # Keys and values of the pictures are made once.
  after = cache.layers["g0"]["0"]["b1"]["cross"]
  np.testing.assert_array_equal(kept["k"], after["k"])
  assert kept["k"].shape[1] == 2 * 4


def test_scan_equals_loop():
  given = batch()
  (loop, params), (scan, _) = made(), made("scan")
  np.testing.assert_allclose(run(scan, params, given), run(loop, params, given), atol=2e-5)


def test_extra_rows_are_read_and_come_out():
  module, params = made()
  given = batch()
  assert run(module, params, given).shape == (1, 6, 43)
  assert params["decoder"]["embedding"].shape == (40, 24)
  last = given.replace(text=given.text.replace(tokens=np.full((1, 6), 42, np.int32)))
  before = run(module, params, last)
  moved = dict(params["decoder"])
  moved["embedding_extra"] = moved["embedding_extra"].at[2].add(1.0)
  assert np.abs(run(module, params | {"decoder": moved}, last) - before).max() > 1e-3
  moved = dict(params["decoder"])
  moved["head_extra"] = moved["head_extra"].at[:, 2].add(1.0)
  off = np.abs(run(module, params | {"decoder": moved}, last) - before)
  assert off[..., 42].min() > 0 and off[..., :42].max() == 0


@pytest.mark.parametrize("density", [0.0, 0.3, 0.9, 1.0])
def test_any_mask_is_ranges(density):
  rng = np.random.default_rng(3)
  mask = rng.random((3, 7, 6)) < density
  seen = mask.any(axis=1)
  label = np.where(seen, np.cumsum(seen, axis=1), 0)
  see = memory_media.ranges(mask, label)
  rows = np.repeat(label, 2, axis=1)
  found = masks.seen(jnp.asarray(see), jnp.asarray(rows))
  np.testing.assert_array_equal(found[:, 0], np.repeat(mask, 2, axis=2))


def test_pictures_in_a_row_are_one_range():
  mask = np.zeros((1, 4, 6), bool)
  mask[0, 1, :2], mask[0, 2, 3:4], mask[0, 3] = True, True, [1, 1, 0, 1, 0, 0]
  seen = mask.any(axis=1)
  see = memory_media.ranges(mask, np.where(seen, np.cumsum(seen, axis=1), 0))
  np.testing.assert_array_equal(see[0], [[1, 0], [1, 2], [3, 3], [1, 3]])


def test_rules_for_some_layers_count_those():
  rules = (
    Rule("own.{i}", "s/*[attn]/mlp"),
    Rule("other.{i}", "s/*[cross]/mlp"),
    Rule("all.{i}", "s/*/norm"),
    Rule("q.{i}", "s/*/attn/q"),
    Rule("k.{i}", "s/*/cross/k"),
  )
  shapes = {}
  for place in ("g0/b0", "g0/b2", "g1/b0"):
    shapes[f"s/{place}/attn/q"] = np.zeros((2, 3))
  shapes["s/g0/b1/cross/k"] = np.zeros((2, 3))
  for place in ("g0/b0", "g0/b1", "g0/b2", "g1/b0"):
    shapes |= {f"s/{place}/{name}": np.zeros((2, 3)) for name in ("mlp", "norm")}
  found = {b.dsts[0]: b.keys for b in CkptMap(rules).bind(shapes)}
  assert found["s/g0/b0/mlp"] == ("own.0", "own.2")
  assert found["s/g0/b2/mlp"] == ("own.1", "own.3")
  assert found["s/g1/b0/mlp"] == ("own.4", "own.5")
  assert found["s/g0/b1/mlp"] == ("other.0", "other.1")
  assert found["s/g1/b0/norm"] == ("all.6", "all.7")
  assert found["s/g0/b1/cross/k"] == ("k.1", "k.4")


def tiles(slots, real):
  rng = np.random.default_rng(1)
  pixels = rng.standard_normal((1, slots, 8, 8, 3)).astype(np.float32)
  pos = np.stack([np.repeat([1, 2], 2)[None, :slots], np.array([real])], axis=-1).astype(np.int32)
  return Media(jnp.asarray(pixels), jnp.ones((1, slots), jnp.int32), None, jnp.asarray(pos))


def test_tiles_of_a_picture_see_each_other():
  encoder = build.encoder(TILED)
  media = tiles(4, [1, 1, 1, 0])
  params = testing.shaken(jax.jit(encoder.init)(jax.random.key(0), media)["params"])
  apply = jax.jit(lambda m: encoder.apply({"params": params}, m).x)
  before = apply(media)
  assert before.shape == (1, 4, 5, 24 * 3)
  moved = np.abs(apply(media.replace(pixels=media.pixels.at[:, 1].add(1.0))) - before)
  moved = moved.max(axis=(0, 2, 3))
  assert moved[:2].min() > 1e-4 and moved[2:].max() == 0
  # The way in which a picture was cut, and whether a slot is there, matter to it alone.
  for spot in ((0, 2, 0), (0, 3, 1)):
    moved = np.abs(apply(media.replace(pos=media.pos.at[spot].add(1))) - before).max(axis=(0, 2, 3))
    assert moved[2:].min() > 1e-5 and moved[:2].max() == 0


def test_pictures_without_places_are_one_tile():
  encoder = build.encoder(TILED)
  media = tiles(4, [1, 0, 1, 0])
  media = media.replace(pos=media.pos.at[..., 0].set(1), item=jnp.array([[1, 0, 2, 0]]))
  media = media.replace(pixels=media.pixels.at[:, 1::2].set(0.0))
  params = testing.shaken(jax.jit(encoder.init)(jax.random.key(0), media)["params"])
  whole = Media(media.pixels[:, ::2], jnp.array([[1, 2]]))
  found, wanted = (encoder.apply({"params": params}, m) for m in (whole, media))
  np.testing.assert_allclose(found.x, wanted.x, atol=1e-6)
  np.testing.assert_array_equal(found.item, wanted.item)


def test_slots_that_are_no_whole_picture_are_refused():
  encoder = build.encoder(TILED)
  with pytest.raises(ValueError, match="3 slots, but a picture takes 2"):
    jax.eval_shape(encoder.init, jax.random.key(0), tiles(3, [1, 1, 1]))
