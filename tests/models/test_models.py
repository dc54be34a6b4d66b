"""Towers and models: what sees what, that ways of running agree, published sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm import build, generate, testing, zoo
from bigvlm.models.decoders import decoder
from bigvlm.models.vision import vit
from bigvlm.types import Media
from bigvlm.utils import tree


def made(cfg, batch, **kw):
  module = build.model(cfg, **kw)
  return module, testing.shaken(jax.jit(module.init)(jax.random.key(0), batch)["params"])


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, batch):
  return module.apply({"params": params}, batch)


def count(name):
  return sum(x.size for x in jax.tree.leaves(zoo.abstract_params(zoo.load_config(name))))


@pytest.mark.parametrize(
  "name, parameters",
  [
    ("vit:variant=mu/16", 43_648),
    ("vit:variant=Ti/16", 5_524_032),
    ("vit:variant=S/16", 21_664_896),
    ("vit:variant=M/16", 38_323_712),
    ("vit:variant=B/16", 85_797_120),
    ("vit:variant=L/16", 303_299_584),
    ("vit:variant=So400m/16", 412_580_592),
    ("vit:variant=H/14", 630_762_240),
    ("vit:variant=g/14", 1_011_199_616),
    ("vit:variant=g-opt/16", 1_134_746_112),
    ("vit:variant=G/14", 1_842_772_352),
    ("vit:variant=G-opt/16", 1_663_486_464),
    ("vit:variant=e/14", 3_805_417_728),
    ("vit:variant=So400m/14,pool=map", 427_680_704),
    ("vit:variant=g-opt/16,pool=map", 1_163_076_096),
    ("vit:variant=B/16,pool=tok,out_dim=1000", 86_566_888),
    ("vit:variant=B/16,pool=tok,out_dim=1000,rep_size=768", 87_157_480),
    ("vit:variant=S/16,pool=gap,posemb=sincos2d,out_dim=1000", 21_974_632),
    ("siglip:variant=B/16,res=224", 203_155_970),
    ("siglip:variant=B/16,res=256", 203_202_050),
    ("siglip:variant=B/16,res=384", 203_447_810),
    ("siglip:variant=B/16,res=512", 203_791_874),
    ("siglip:variant=L/16,res=256", 652_150_786),
    ("siglip:variant=L/16,res=384", 652_478_466),
    ("siglip:variant=So400m/14,res=224", 877_415_602),
    ("siglip:variant=So400m/14,res=224,text_len=16", 877_360_306),
    ("siglip:variant=So400m/14,res=384", 877_960_498),
    ("paligemma:size=3b,res=224", 2_923_335_408),
    ("paligemma:size=3b,res=448", 2_924_220_144),
    ("paligemma:size=3b,res=896", 2_927_759_088),
    ("paligemma:size=2-3b,res=224", 3_032_094_960),
    ("paligemma:size=2-10b,res=448", 9_663_294_192),
    ("paligemma:size=2-28b,res=896", 27_654_615_792),
  ],
)
def test_published_sizes_have_their_published_number_of_parameters(name, parameters):
  assert count(name) == parameters


def test_a_convolutional_stem_sees_the_same_thing_in_every_place():
  stem = vit.ConvStem(width=16, patch=4, blocks=1)
  x = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
  params = stem.init(jax.random.key(1), x)
  here = stem.apply(params, x).reshape(8, 8, 16)
  moved = stem.apply(params, jnp.roll(x, (4, 8), (1, 2))).reshape(8, 8, 16)
  np.testing.assert_allclose(moved[3:-2, 4:-2], here[2:-3, 2:-4], rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match="power of 2, not 6"):
    vit.ConvStem(width=16, patch=6).init(jax.random.key(1), x)


def test_ordered_rows_of_the_table_start_alike_where_they_are_near():
  cfg = dict(width=64, depth=1, hidden=8, heads=1, kv_heads=1, head_dim=8, vocab=300)
  table = decoder.Decoder(**cfg, ordered=(20, 276))
  params = table.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), method="embed")
  rows = np.asarray(params["params"]["embedding"])
  np.testing.assert_allclose((rows**2).sum(1).mean(), 1, atol=0.1)
  product = rows @ rows.T
  near = np.diag(product, 1)
  assert near[20:275].mean() > 0.75 and near[20:275].min() > 0.4
  assert abs(product[40:80, 180:260]).mean() < 0.3 and abs(near[:19]).max() < 0.6


def test_info_shows_the_count():
  text = zoo.info("siglip:variant=B/16,res=224")
  assert "203,155,970 parameters" in text.splitlines()[0]
  assert "encoders/image/posemb" in text


def test_unknown_names_are_refused_with_what_is_near():
  with pytest.raises(ValueError, match="did you mean 'siglip'"):
    zoo.info("siglp")
  with pytest.raises(ValueError, match="'Bee/16'.*So400m"):
    zoo.info("vit:variant=Bee/16")
  with pytest.raises(ValueError, match="model.kind.*vlm"):
    build.model(dict(kind="vlmm"))
  with pytest.raises(ValueError, match="model.decoder field 'widht'.*width"):
    build.model(testing.TINY_VLM | dict(decoder=dict(kind="decoder", widht=3)))
  with pytest.raises(ValueError, match="model.decoder needs .*vocab"):
    build.model(testing.TINY_VLM | dict(decoder=dict(kind="decoder", width=3)))
  with pytest.raises(ValueError, match="model.encoders.image.pool.*map"):
    build.model(dict(kind="encoder", encoders=dict(image=testing.TINY_VIT | dict(pool="mpa"))))


def test_an_encoder_takes_pictures_that_are_not_square_and_drops_partial_patches():
  cfg = dict(kind="encoder", encoders=dict(image=testing.TINY_VIT))
  pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 21, 34, 3)).astype(np.uint8)
  batch = testing.contrastive_batch(1).replace(media={"image": Media(pixels, np.ones((1, 1)))})
  module, params = made(cfg, batch)
  feats = run(module, params, batch).feats["image"]
  assert feats.x.shape == (1, 1, 2 * 4, 32)
  cropped = {"image": Media(pixels[:, :, :16, :32], np.ones((1, 1)))}
  same = run(module, params, batch.replace(media=cropped)).feats["image"]
  np.testing.assert_array_equal(feats.x, same.x)


def test_uint8_pixels_are_normalised_as_float_pixels_are():
  batch = testing.contrastive_batch(2)
  module, params = made(testing.TINY_TWO_TOWER, batch)
  media = batch.media["image"]
  scaled = media.replace(pixels=media.pixels.astype(np.float32) / 127.5 - 1)
  a = run(module, params, batch).heads["image"]
  b = run(module, params, batch.replace(media={"image": scaled})).heads["image"]
  np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("pool", ["map", "gap", "tok"])
def test_pooling_gives_one_vector_a_picture_and_keeps_the_patches(pool):
  batch = testing.contrastive_batch(2)
  cfg = dict(kind="encoder", encoders=dict(image=testing.TINY_VIT | dict(pool=pool, rep_size=6)))
  module, params = made(cfg, batch)
  out = run(module, params, batch)
  assert out.heads["image"].shape == (2, 6)
  assert out.feats["image"].x.shape == (2, 1, 4, 32)


@pytest.mark.parametrize("bias, t", [(-10.0, 10.0), (None, 1 / 0.07)])
def test_two_tower_starts_with_the_temperature_and_bias_of_its_objective(bias, t):
  batch = testing.contrastive_batch(3)
  cfg = testing.TINY_TWO_TOWER | dict(temperature_init=t, bias_init=bias)
  module = build.model(cfg)
  params = jax.jit(module.init)(jax.random.key(0), batch)["params"]
  heads = run(module, params, batch).heads
  assert float(heads["scale"]) == pytest.approx(t, rel=1e-5)
  assert float(heads["bias"]) == (bias or 0.0)
  assert ("b" in params) == (bias is not None)
  for side in ("image", "text"):
    np.testing.assert_allclose(np.linalg.norm(heads[side], axis=1), 1, atol=1e-4)


VLM_BATCH = testing.prefix_lm_batch([3, 6, 5], [4, 2, 5])


@pytest.fixture(scope="module")
def vlm():
  module, params = made(testing.TINY_VLM, VLM_BATCH)
  return module, params, functools.partial(run, module, params)


def changed(batch, row, position):
  tokens = batch.text.tokens.copy()
  tokens[row, position] = (tokens[row, position] - 3 + 1) % 61 + 3
  return batch.replace(text=batch.text.replace(tokens=tokens))


def moved(vlm, other):
  """Which hidden states [B, T] differ between VLM_BATCH and another batch."""
  a, b = vlm[2](VLM_BATCH).hidden, vlm[2](other).hidden
  return np.abs(np.array(a - b)).max(-1) > 1e-6


def test_the_prefix_is_bidirectional_and_the_suffix_causal(vlm):
  # Row 0: 4 image tokens, prefix at 4..6, suffix at 7..10, padding from 11.
  diff = moved(vlm, changed(VLM_BATCH, 0, 5))
  assert diff[0, :11].all() and not diff[1:].any()
  diff = moved(vlm, changed(VLM_BATCH, 0, 9))
  assert not diff[0, :9].any() and diff[0, 9:11].all()


def test_nothing_sees_padding(vlm):
  diff = moved(vlm, changed(VLM_BATCH, 0, 12))
  assert not diff[0, :11].any()


def test_the_picture_is_seen_by_all(vlm):
  pixels = VLM_BATCH.media["image"].pixels.copy()
  pixels[0, 0, 3, 3] ^= 255
  media = {"image": VLM_BATCH.media["image"].replace(pixels=pixels)}
  diff = moved(vlm, VLM_BATCH.replace(media=media))
  assert diff[0, :11].all() and not diff[1:].any()


def test_logits_are_those_of_the_read_positions(vlm):
  _, params, forward = vlm
  out = forward(VLM_BATCH)
  assert out.logits.shape == (3, 10, 64) and out.logits.dtype == jnp.float32
  hidden = np.take_along_axis(np.array(out.hidden), VLM_BATCH.text.read[..., None], axis=1)
  want = hidden @ np.array(params["decoder"]["embedding"]).T
  np.testing.assert_allclose(out.logits, want, atol=1e-4)


def test_text_embeddings_are_scaled_and_image_embeddings_are_not(vlm):
  module, params, _ = vlm
  tokens = jnp.array([[5, 7]])
  got = module.apply({"params": params}, tokens, method=lambda m, t: m.decoder.embed(t))
  np.testing.assert_allclose(got[0], params["decoder"]["embedding"][tokens[0]] * 40**0.5, rtol=1e-6)


def prompts(batch):
  """The same rows as prompts: no suffix, read the last prefix position."""
  text = batch.text
  segment = ((text.mask.block == 0) & (text.mask.segment > 0)).astype(np.int32)
  mask = dataclasses.replace(text.mask, segment=segment)
  return batch.replace(text=text.replace(mask=mask, read=segment.sum(1, keepdims=True) - 1))


def greedy_by_full_forwards(run, batch, row, n, eos=1):
  """Ids by running the whole sequence again for every token: the slow definition."""
  ids = []
  start = int(prompts(batch).text.mask.segment[row].sum())
  tokens = batch.text.tokens.copy()
  for k in range(n):
    full = testing.prefix_lm_batch([3, 6, 5], [k + 1] * 3)
    text = full.text.replace(tokens=tokens, read=np.full((3, 10), start - 1 + k, np.int32))
    ids.append(int(np.argmax(run(full.replace(text=text)).logits[row, 0])))
    if start + k < tokens.shape[1]:
      tokens[row, start + k] = ids[-1]
  return ids


@pytest.mark.parametrize("mode", ["loop", "scan"])
def test_cached_decoding_of_a_ragged_batch_equals_full_forwards(vlm, mode):
  module = build.model(testing.TINY_VLM, layers=mode)
  params = vlm[1]
  # A table that the decoder cannot ignore: distinct answers along the sequence.
  params = params | {"decoder": params["decoder"] | {"norm": {"scale": jnp.full((40,), 2.0)}}}
  full = functools.partial(run, vlm[0], params)
  cut = generate.unstack(params) if mode == "loop" else params
  got = generate.generate(
    module, cut, prompts(VLM_BATCH), jax.random.key(0), max_new_tokens=4, eos=1
  )
  want = [greedy_by_full_forwards(full, VLM_BATCH, row, 4) for row in range(3)]
  assert np.array(got).tolist() == want


def test_step_logits_equal_full_forward_logits(vlm):
  module, params, forward = vlm
  full = forward(VLM_BATCH)
  prefill = jax.jit(lambda b, cache: module.apply({"params": params}, b, cache=cache))
  step = jax.jit(lambda t, cache: module.apply({"params": params}, t, cache, method="step"))
  out = prefill(prompts(VLM_BATCH), module.decoder.init_cache(3, 14 + 4))
  np.testing.assert_allclose(out.logits[:, 0], full.logits[:, 0], atol=1e-4)
  cache = out.cache
  for k in range(2):  # Every row has at least two suffix tokens; the label is the next input.
    logits, cache = step(VLM_BATCH.labels[:, k], cache)
    if k == 0:
      np.testing.assert_allclose(logits, full.logits[:, 1], atol=1e-4)
  live = VLM_BATCH.weights[:, 2] > 0
  np.testing.assert_allclose(logits[live], full.logits[live, 2], atol=1e-4)


def test_a_row_that_has_ended_stays_ended(vlm):
  module, params, _ = vlm
  cut = generate.unstack(params)
  eos = int(np.argmax(vlm[2](VLM_BATCH).logits[0, 0]))
  ids = generate.generate(
    module, cut, prompts(VLM_BATCH), jax.random.key(0), max_new_tokens=5, eos=eos
  )
  assert (np.array(ids)[0] == eos).all()


def test_dtypes_follow_the_policy():
  policy = dict(params="float32", compute="bfloat16", logits="float32")
  module, params = made(testing.TINY_VLM, VLM_BATCH, dtype=policy)
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}
  out = jax.eval_shape(lambda: module.apply({"params": params}, VLM_BATCH))
  assert out.hidden.dtype == jnp.bfloat16 and out.logits.dtype == jnp.float32
  half = build.model(testing.TINY_VLM, dtype=policy | dict(params="bfloat16", logits="bfloat16"))
  shapes = jax.eval_shape(half.init, jax.random.key(0), VLM_BATCH)["params"]
  assert {str(x.dtype) for x in jax.tree.leaves(shapes)} == {"bfloat16"}
  got = run(module, params, VLM_BATCH).logits
  want = run(build.model(testing.TINY_VLM), params, VLM_BATCH).logits
  assert 1e-5 < np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_softcaps_bound_the_logits():
  decoder = testing.TINY_VLM["decoder"] | dict(
    final_softcap=0.25, attn_softcap=1.0, post_norms=True
  )
  module, params = made(testing.TINY_VLM | dict(decoder=decoder), VLM_BATCH)
  logits = np.array(run(module, params, VLM_BATCH).logits)
  assert np.abs(logits).max() <= 0.25
  assert "post_norm1" in params["decoder"]["blocks"]["g0"]["b0"]


def test_parameter_names_are_the_documented_ones(vlm):
  names = set(tree.names(vlm[1]))
  assert {
    "encoders/image/posemb",
    "encoders/image/patch/kernel",
    "encoders/image/blocks/g0/b0/attn/q/kernel",
    "connector/linear/kernel",
    "decoder/embedding",
    "decoder/blocks/g0/b0/mlp/gate/kernel",
    "decoder/norm/scale",
  } <= names
