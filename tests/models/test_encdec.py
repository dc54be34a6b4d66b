"""Encoder-decoders: what sees what, relative positions, that ways of running agree, sizes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigvlm import build, generate, testing, zoo
from bigvlm.layers import relpos
from bigvlm.objectives import lm
from bigvlm.processing import prompt
from bigvlm.types import Batch, MaskSpec, Text, to_batch
from bigvlm.utils import tree

TINY = dict(
  kind="encdec",
  vocab=40,
  width=24,
  depth=2,
  decoder_depth=3,
  hidden=40,
  heads=3,
  head_dim=12,
  buckets=8,
  max_distance=12,
)


def text(tokens, segment, *, causal=False, order=None):
  """Rows of ids and of their segments; `read` is everywhere."""
  tokens, segment = np.array(tokens, np.int32), np.array(segment, np.int32)
  index = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
  order = index if order is None else np.array(order, np.int32)
  spec = MaskSpec(segment, order * np.int32(causal), order)
  return Text(tokens, spec, order, np.full_like(tokens, -1), index)


def batch(seed=0, rows=3, length=17, target=9):
  """Texts of several lengths, right-padded, and targets of one."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(2, 40, (rows, length))
  segment = np.arange(length)[None] < rng.integers(4, length + 1, (rows, 1))
  targets = rng.integers(2, 40, (rows, target))
  targets[:, 0] = 0
  return Batch(text(tokens, segment), {}, target=text(targets, targets >= 0, causal=True))


@functools.cache
def made(layers="loop", **over):
  module = build.model(dict(kind="lm", decoder=TINY | over), layers=layers)
  params = jax.jit(module.init)(jax.random.key(0), batch())["params"]
  return module, testing.shaken(params)


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, given):
  return module.apply({"params": params}, given).logits


def bucket(distance, count, far, bidirectional):
  """One bucket, as the paper's code words it: half exact, half growing by a constant factor."""
  first = 0
  if bidirectional:
    count //= 2
    first, distance = (count if distance > 0 else 0), abs(distance)
  else:
    distance = max(-distance, 0)
  exact = count // 2
  if distance < exact:
    return first + distance
  grown = math.log(distance / exact) / math.log(far / exact) * (count - exact)
  return first + min(exact + int(grown), count - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("count, far", [(32, 128), (12, 20), (8, 12)])
def test_buckets_of_relative_positions(count, far, bidirectional):
  wanted = [bucket(d, count, far, bidirectional) for d in range(-far - 40, far + 41)]
  found = relpos.buckets(count, far, bidirectional)
  at = np.clip(np.arange(-far - 40, far + 41), -far, far) + far
  assert found[at].tolist() == wanted
  if bidirectional:
    assert set(found) == set(range(count)) - {count // 2}  # No distance is both 0 and ahead.


def test_the_bias_depends_on_distances_in_order_and_not_on_columns():
  layer = relpos.RelativeBias(heads=3, buckets=8, max_distance=12)
  order = jnp.arange(20)[None]
  params = testing.shaken(layer.init(jax.random.key(0), order, order), size=1.0)
  whole = layer.apply(params, order, order)
  assert whole.shape == (1, 3, 20, 20)
  np.testing.assert_array_equal(layer.apply(params, order + 5, order + 5), whole)
  mixed = jnp.array([[7, 0, 19]])
  np.testing.assert_array_equal(layer.apply(params, order, mixed), whole[..., mixed[0]])
  np.testing.assert_array_equal(whole[0, :, 4, 6], whole[0, :, 11, 13])
  assert abs(whole[0, :, 4, 6] - whole[0, :, 6, 4]).min() > 1e-3


def test_logits_are_at_the_target_and_both_stacks_have_one_bias():
  module, params = made()
  assert run(module, params, batch()).shape == (3, 9, 40)
  decoder = params["decoder"]
  assert decoder["encoder"]["blocks"]["g0"]["b0"]["attn"]["q"]["kernel"].shape == (2, 24, 3, 12)
  assert decoder["decoder"]["blocks"]["g0"]["b0"]["cross"]["q"]["kernel"].shape == (3, 24, 3, 12)
  names = list(tree.flatten(params))
  assert sum("relpos" in n for n in names) == 2 and not any("bias" in n for n in names)
  assert "head" in made(tied=False)[1]["decoder"]


def test_a_text_without_a_target_is_refused():
  module, params = made()
  with pytest.raises(ValueError, match=r"needs Batch\.target"):
    module.apply({"params": params}, batch().replace(target=None))


def test_padding_of_the_encoder_changes_nothing():
  module, params = made()
  given = batch()
  lengths = given.text.mask.segment.sum(axis=1)
  assert len(set(lengths)) > 1
  out = run(module, params, given)
  # Other ids under the padding; padding on the other side.
  noise = np.where(given.text.mask.segment > 0, given.text.tokens, 39 - given.text.tokens % 7)
  np.testing.assert_array_equal(
    run(module, params, given.replace(text=given.text.replace(tokens=noise))), out
  )
  turned = [np.roll(x, -n) for x, n in zip(given.text.tokens, lengths, strict=True)]
  segment = [np.roll(x, -n) for x, n in zip(given.text.mask.segment, lengths, strict=True)]
  left = given.replace(text=text(turned, segment))
  np.testing.assert_allclose(run(module, params, left), out, atol=1e-5)


def test_the_target_is_causal_and_reads_the_whole_text():
  module, params = made()
  given = batch()
  out = run(module, params, given)
  tokens = given.target.tokens.copy()
  tokens[:, 5] = (tokens[:, 5] + 1) % 40
  later = run(module, params, given.replace(target=given.target.replace(tokens=tokens)))
  np.testing.assert_array_equal(later[:, :5], out[:, :5])
  assert abs(later - out)[:, 5:].max(axis=(1, 2)).min() > 1e-3
  tokens = given.text.tokens.copy()
  last = given.text.mask.segment.sum(axis=1) - 1
  tokens[np.arange(3), last] = (tokens[np.arange(3), last] + 1) % 40
  other = run(module, params, given.replace(text=given.text.replace(tokens=tokens)))
  assert abs(other - out)[:, 0].max(axis=1).min() > 1e-4


def test_packed_examples_do_not_see_each_other():
  module, params = made()
  rng = np.random.default_rng(1)
  a, b = rng.integers(2, 40, (2, 6))
  t, u = rng.integers(2, 40, (2, 4))
  ones, order = np.ones(6, int), np.arange(6)
  apart = Batch(
    text([a, b], [ones, ones]), {}, target=text([t, u], [ones[:4], ones[:4]], causal=True)
  )
  packed = Batch(
    text([[*a, *b, 3]], [[*ones, *(2 * ones), 0]], order=[[*order, *order, 0]]),
    {},
    target=text([[*t, *u]], [[1] * 4 + [2] * 4], causal=True, order=[[*order[:4], *order[:4]]]),
  )
  out = run(module, params, packed)
  wanted = run(module, params, apart)
  np.testing.assert_allclose(out[0].reshape(2, 4, 40), wanted, atol=1e-5)


def test_scanned_layers_give_the_same_numbers():
  module, params = made()
  scanned, _ = made("scan")
  np.testing.assert_allclose(run(scanned, params, batch()), run(module, params, batch()), atol=1e-5)


@pytest.mark.parametrize("layers", ["loop", "scan"])
def test_a_cache_gives_the_logits_of_the_whole_target(layers):
  module, params = made(layers)
  given = batch(target=17)  # Farther than the near buckets.
  wanted = run(module, params, given)
  start = jax.tree.map(lambda x: x[:, :3], given.target).replace(read=np.full((3, 1), 2))
  if layers == "loop":
    params = generate.unstack(params)
  cache = module.init_cache(given, 0)
  out = module.apply({"params": params}, given.replace(target=start), cache=cache)
  found, cache = [out.logits[:, 0]], out.cache
  step = jax.jit(functools.partial(module.apply, method="step"))
  for i in range(3, 17):
    logits, cache = step({"params": params}, given.target.tokens[:, i], cache)
    found.append(logits)
  np.testing.assert_allclose(np.stack(found, 1), wanted[:, 2:], atol=2e-5)


def test_generation_is_the_likeliest_token_again_and_again():
  module, params = made(tied=False)
  given = batch(2)
  start = text(np.zeros((3, 1)), np.ones((3, 1)), causal=True)
  ids = generate.generate(
    module,
    generate.unstack(params),
    given.replace(target=start),
    jax.random.key(0),
    max_new_tokens=8,
    eos=(),
  )
  tokens = np.concatenate([np.zeros((3, 1), np.int32), ids], axis=1)
  whole = given.replace(target=text(tokens, np.ones_like(tokens), causal=True))
  wanted = run(module, params, whole).argmax(-1)
  np.testing.assert_array_equal(wanted[:, :-1], ids)
  assert len(np.unique(ids)) > 3


def parts(name):
  cfg = zoo.load_config(name)
  sums = {}
  for key, leaf in tree.flatten(zoo.abstract_params(cfg)).items():
    part = key.split("/")[0]
    sums[part] = sums.get(part, 0) + leaf.size
  return sums


@pytest.mark.parametrize(
  "variant, parameters",
  [
    ("t5_small", 60_506_624),
    ("t5_base", 222_903_552),
    ("t5_large", 737_668_096),
    ("t5_3b", 2_851_598_336),
    ("t5_11b", 11_307_321_344),
    ("t5_v1_1_small", 76_961_152),
    ("t5_v1_1_base", 247_577_856),
    ("t5_v1_1_large", 783_150_080),
    ("t5_v1_1_xl", 2_849_757_184),
    ("t5_v1_1_xxl", 11_135_332_352),
    ("mt5_small", 300_176_768),
    ("mt5_base", 582_401_280),
    ("mt5_large", 1_229_581_312),
    ("mt5_xl", 3_742_619_648),
    ("mt5_xxl", 12_921_057_280),
    ("umt5_small", 306_601_984),
    ("umt5_base", 592_043_520),
    ("umt5_xl", 3_768_356_864),
    ("umt5_xxl", 12_972_531_712),
    ("ul2_20b", 19_591_209_984),
    ("ul2_3b", 3_230_390_272),
  ],
)
def test_published_sizes_have_their_published_number_of_parameters(variant, parameters):
  assert parts(f"t5:variant={variant}") == {"decoder": parameters}


@pytest.mark.parametrize(
  "size, vision, text_model",
  [
    ("3b", 1_842_772_352, 1_229_581_312),
    ("15b", 1_842_772_352, 12_921_057_280),
    ("17b", 3_805_417_728, 12_921_057_280),
    ("3", 1_842_772_352, 3_230_390_272),
  ],
)
def test_published_sizes_of_pali(size, vision, text_model):
  found = parts(f"pali:size={size}")
  assert (found["encoders"], found["decoder"]) == (vision, text_model)


def test_pali_x_has_about_its_55_billion_parameters():
  found = parts("pali:size=x")
  assert abs(found["encoders"] / 21.7e9 - 1) < 0.01
  assert abs(found["decoder"] / 32e9 - 1) < 0.01


@pytest.mark.parametrize("res, tokens", [(224, 256), (812, 3364), (1064, 5776)])
def test_pali_3_has_its_published_number_of_image_tokens(res, tokens):
  cfg = zoo.load_config(f"pali:size=3,res={res}")
  assert math.prod(build.patch_grid(cfg.model, cfg.processor)) == tokens


def pali_batch(suffix, seed=0):
  """Two rows as the processor packs them, with random pictures."""
  sizes = dict(image_tokens=4, text_len=16, target_len=8, eos=1)
  texts = [[5, 6, 7], [8, 9, 10, 11, 12]]
  rows = [prompt.pack_pair(t, s, **sizes).arrays for t, s in zip(texts, suffix, strict=True)]
  arrays = {k: np.stack([r[k] for r in rows]) for k in rows[0]}
  media = testing.image(2, 16, np.random.default_rng(seed))
  return to_batch(arrays | {"image": media.pixels, "image_item": media.item})


def test_a_tiny_pali_learns_an_answer_and_generates_it():
  cfg = zoo.load_config("pali:tiny,size=x")
  module = build.model(cfg.model)
  given = pali_batch([[20, 21, 22], [30, 31]])
  params = jax.jit(module.init)(jax.random.key(0), given)["params"]
  optimizer = optax.adam(5e-3)

  @jax.jit
  def step(params, state):
    def loss(p):
      out = module.apply({"params": p}, given, train=True, rngs={"dropout": jax.random.key(1)})
      return lm.PrefixLM()(out, given)[0]

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state)
    return value, grads, optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  first, grads, params, state = step(params, state)
  flat = tree.flatten(grads)
  assert all(abs(g).max() > 0 for g in flat.values()), [k for k, g in flat.items() if not g.any()]
  for _ in range(60):
    value, _, params, state = step(params, state)
  assert value < 0.1 * first
  ids = generate.generate(
    module,
    generate.unstack(params),
    pali_batch([None, None]),
    jax.random.key(0),
    max_new_tokens=5,
    eos=1,
  )
  assert ids.tolist() == [[20, 21, 22, 1, 1], [30, 31, 1, 1, 1]]


def test_the_picture_enters_through_the_encoder():
  module = build.model(zoo.load_config("pali:tiny").model)
  given = pali_batch([[20, 21, 22], [30, 31]])
  params = jax.jit(module.init)(jax.random.key(0), given)["params"]
  other = given.replace(media=pali_batch([[2], [3]], seed=1).media)
  a, b = run(module, params, given), run(module, params, other)
  assert abs(a - b).max(axis=(1, 2)).min() > 1e-4
