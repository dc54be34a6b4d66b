"""Low-rank adapters: in the layers, merged and unmerged, and in the files of PEFT."""

import functools
import json
import pathlib
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bigvlm
from bigvlm import build, lora
from bigvlm.hub import decoding, peft
from bigvlm.layers import blocks, dense
from bigvlm.parallel import mesh as mesh_lib
from bigvlm.trainers import state as state_lib
from bigvlm.utils import tree

FIXTURES = pathlib.Path(__file__).resolve().parent / "fixtures"
TARGETS = (".*/attn/.*", ".*/mlp/(up|down)", "encoders/image/patch", "connector/linear")


def awake(params, seed=0):
  """Parameters whose adapters do something."""
  rng = np.random.default_rng(seed)

  def leaf(name, x):
    draw = name.endswith("/lora_b")
    return jnp.asarray(0.2 * rng.standard_normal(x.shape), jnp.float32) if draw else x

  return tree.map_named(leaf, params)


def error(ours, theirs):
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.fixture(scope="module")
def plain():
  return bigvlm.load(FIXTURES / "hub" / "paligemma-0")


@pytest.fixture(scope="module")
def batch(plain):
  """float32 pixels and ids of one prompt with an image, as a batch."""
  with np.load(FIXTURES / "hub" / "paligemma-0" / "io.npz") as z:
    return {k[3:]: z[k] for k in z if k.startswith("in_")}


@pytest.fixture(scope="module")
def params(plain):
  return awake(lora.add(plain.params, 3, TARGETS, rng=jax.random.key(0), alpha=6.0))


@functools.partial(jax.jit, static_argnums=(0, 4))
def forward(module, params, batch, rngs, train):
  return module.apply({"params": params}, batch, train=train, rngs=rngs).logits


def logits(model, params, given, train=False, rngs=None, **more):
  """float32 logits of a module built with other fields over the same parameters."""
  batch = decoding.BATCHES["vlm"](model, given, False)
  module = build.model(model.config["model"], **{"dtype": model.config["dtype"], **more})
  return np.asarray(forward(module, params, batch, rngs, train), np.float32)


def test_new_adapters_change_nothing(plain, batch):
  added = lora.add(plain.params, 2, TARGETS, rng=jax.random.key(1))
  np.testing.assert_array_equal(
    logits(plain, added, batch), logits(plain, plain.params, batch), strict=True
  )


@pytest.mark.parametrize(
  "how", [{}, {"layers": "scan"}, {"remat": "full"}, {"layers": "scan", "remat": "dots"}], ids=str
)
def test_an_adapter_is_what_it_merges_into(plain, batch, params, how):
  merged, _ = lora.merge(params)
  want = logits(plain, merged, batch)
  assert error(want, logits(plain, plain.params, batch)) > 0.05
  assert error(logits(plain, params, batch, **how), want) < 1e-5


def test_bfloat16_computes_with_adapters_too(plain, batch, params):
  dtype = dict(params="bfloat16", compute="bfloat16", logits="float32")
  got = logits(plain, params, batch, dtype=dtype)
  assert 0 < error(got, logits(plain, params, batch)) < 0.1


def test_decoding_uses_adapters(batch, params):
  """The cut form of the layers, over a cache; whatever parameters the model has had before."""
  model = bigvlm.load(FIXTURES / "hub" / "paligemma-0")
  without = model.generate_hf(batch, max_new_tokens=4)
  model.params = params
  ids = model.generate_hf(batch, max_new_tokens=4)
  model.params = lora.merge(params)[0]
  np.testing.assert_array_equal(ids, model.generate_hf(batch, max_new_tokens=4))
  assert not np.array_equal(ids, without)


@pytest.mark.parametrize("how", [{}, {"layers": "scan", "remat": "full"}], ids=str)
def test_dropout_only_with_a_key(plain, batch, how):
  targets = ("decoder/.*/attn/[qo]",)
  params = awake(lora.add(plain.params, 3, targets, rng=jax.random.key(0), dropout=0.3))
  want = logits(plain, params, batch, **how)
  np.testing.assert_array_equal(logits(plain, params, batch, train=True, **how), want)
  one, two = (
    logits(plain, params, batch, train=True, rngs={"dropout": jax.random.key(n)}, **how)
    for n in (0, 1)
  )
  assert error(one, want) > 1e-3 and error(one, two) > 1e-3


def test_every_layer_drops_something_else():
  """What is kept is scaled by 1 / (1 - rate), and each layer of a stack draws for itself."""
  spec = blocks.LayerSpec(8, 1, 8, 1, 8, 1.0, norm="rms_plain", bias=False, act="relu")
  stack = blocks.Stack(spec, (((blocks.Kind(),), 2),))
  x, eye = jnp.ones((1, 1, 8)), jnp.broadcast_to(jnp.eye(8), (2, 8, 8))
  params = jax.tree.map(jnp.zeros_like, stack.init(jax.random.key(0), x, blocks.Ctx())["params"])
  layer = params["g0"]["b0"]
  layer["norm2"]["scale"], layer["mlp"]["down"]["kernel"] = jnp.ones((2, 8)), eye
  params = lora.add(params, 8, ("g0/b0/mlp/up",), rng=jax.random.key(1), dropout=0.5)
  params["g0"]["b0"]["mlp"]["up"] |= {"lora_a": eye, "lora_b": eye}

  def run(key):
    return stack.apply({"params": params}, x, blocks.Ctx(train=True), rngs={"dropout": key})[0]

  seen = np.asarray(jax.vmap(run)(jax.random.split(jax.random.key(2), 64))).reshape(64, 8)
  # x + 2 x or x + 0 in each layer: 3 and 1 where the second layer dropped what it saw.
  for value in (1.0, 3.0):
    assert np.any(np.abs(seen - value) < 1e-5)
  # Were the two draws one, a row would hold two values.
  assert max(len(np.unique(np.round(row, 4))) for row in seen) == 4


def test_merge_rounds_once_and_unmerge_gives_the_bytes_back(plain):
  bf16 = jax.tree.map(lambda x: x.astype(jnp.bfloat16), plain.params)
  before = awake(lora.add(bf16, 5, TARGETS, rng=jax.random.key(3), alpha=3.0))
  merged, kept = lora.merge(before)
  assert tree.names(merged) == tree.names(plain.params)
  name = "decoder/blocks/g0/b0/attn/o"
  kernel, a, b, scale = (
    np.asarray(tree.flatten(before)[f"{name}/{leaf}"], np.float64)
    for leaf in ("kernel", "lora_a", "lora_b", "lora_scale")
  )
  want = kernel + np.einsum("lhkr,lrd->lhkd", a, b) * scale[:, None, None, None]
  got = np.asarray(tree.flatten(merged)[f"{name}/kernel"])
  assert got.dtype == ml_dtypes.bfloat16
  step = np.asarray(want.astype(np.float32).astype(ml_dtypes.bfloat16), np.float64)
  assert np.mean(np.float64(got) == step) > 0.999  # The others are ties of the two precisions.
  again = tree.flatten(lora.unmerge(merged, kept))
  for key, x in tree.flatten(before).items():
    assert np.asarray(again[key]).tobytes() == np.asarray(x).tobytes(), key
  assert len(again) == len(tree.flatten(before))


def test_only_the_matrices_train(plain):
  added = lora.add(plain.params, 2, (".*/attn/q",), rng=jax.random.key(0), dropout=0.1)
  train, frozen = state_lib.split(added, lora.TRAINED, "train")
  assert {n.rsplit("/", 1)[-1] for n in tree.names(train)} == {"lora_a", "lora_b"}
  assert len(tree.names(frozen)) == len(tree.names(plain.params)) + 2 * len(lora.modules(added))
  everything, rest = state_lib.split(added, (".*",), "train")
  assert len(tree.names(rest)) == 2 * len(lora.modules(added))
  assert all(lora.is_constant(n) for n in tree.names(rest))


def test_the_axes_of_every_linear_layer_are_known(plain):
  """What the names of kernels say is what the layers themselves do."""
  for name in ("paligemma:tiny", "siglip:tiny"):
    seen = {}

    def note(call, args, kwargs, context, seen=seen):
      module = context.module
      if isinstance(module, dense.Linear) and context.method_name == "__call__":
        seen["/".join(module.path)] = len(module.shape) - module.out_dims
      return call(*args, **kwargs)

    with nn.intercept_methods(note):
      model = bigvlm.load(name, init=None)
    flat = tree.flatten(model.params)
    assert len(seen) > 10
    for module, inputs in seen.items():
      assert lora.axes(module, flat[f"{module}/kernel"].ndim)[1] == inputs, module


@pytest.mark.parametrize(
  ("given", "said"),
  [
    (dict(targets=(".*/attn/query",)), r"targets: the pattern '\.\*/attn/query' matches no"),
    (dict(targets=("decoder/block/.*",)), "did you mean 'decoder/blocks'"),
    (dict(targets=()), "targets is empty"),
    (dict(targets=("(",)), "no regular expression"),
    (dict(rank=0), "rank of an adapter is at least 1, not 0"),
    (dict(dropout=1.0), "dropout of an adapter is at least 0 and below 1"),
    (dict(alpha=-1.0), "alpha of an adapter is above 0"),
  ],
)
def test_bad_adapters_are_named(plain, given, said):
  given = {"rank": 2, "targets": (".*/attn/q",), "rng": jax.random.key(0), **given}
  with pytest.raises(ValueError, match=said):
    lora.add(plain.params, **given)


def test_a_convolution_and_a_second_adapter_are_refused():
  kernel = {"stem": {"conv0": {"kernel": jnp.zeros((3, 3, 3, 8))}}}
  with pytest.raises(ValueError, match="stem/conv0/kernel, of 4 axes, is no linear layer"):
    lora.add(kernel, 2, ("stem/.*",), rng=jax.random.key(0))
  once = lora.add({"a": {"kernel": jnp.zeros((3, 8))}}, 2, ("a",), rng=jax.random.key(0))
  with pytest.raises(ValueError, match="a has an adapter; merge it"):
    lora.add(once, 2, ("a",), rng=jax.random.key(0))


def test_a_checkpoint_has_no_place_for_adapters(params, tmp_path):
  model = bigvlm.load(FIXTURES / "hub" / "paligemma-0")
  model.params = params
  for call in (model.save_hf, model.save_npz):
    with pytest.raises(ValueError, match="no place for the LoRA adapter .* merge them"):
      call(tmp_path / "out.npz")
  assert not (tmp_path / "out.npz").exists()


# Adapters that PEFT made (python -m tests.parity.peft_live --fixtures).
each = pytest.mark.parametrize("name", sorted(f.name for f in (FIXTURES / "peft").iterdir()))


@each
def test_an_adapter_of_peft_gives_what_peft_gave(name):
  model = lora.load_peft(bigvlm.load(FIXTURES / "hub" / name), FIXTURES / "peft" / name)
  with (
    np.load(FIXTURES / "hub" / name / "io.npz") as z,
    np.load(FIXTURES / "peft" / name / "io.npz") as wanted,
  ):
    out = model.forward_hf({k[3:]: z[k] for k in z if k.startswith("in_")})
    assert len(wanted.files) >= 1
    for key in wanted:
      mask = z["mask"] if key == "out_logits" and "mask" in z else ...
      assert error(out[key[4:]][mask], wanted[key][mask]) < 1e-5, key
      plain = z[key]
      assert error(plain[mask], wanted[key][mask]) > 1e-3, key


@each
def test_an_adapter_goes_back_into_its_files(name, tmp_path):
  source = FIXTURES / "peft" / name
  model = lora.load_peft(bigvlm.load(FIXTURES / "hub" / name), source)
  lora.save_peft(model, tmp_path, base="hf:owner/name@main")
  a, b = (load_file(f / peft.TENSORS) for f in (source, tmp_path))
  assert a.keys() == b.keys()
  for key in a:
    assert a[key].tobytes() == b[key].tobytes() and a[key].shape == b[key].shape, key
  was, now = (json.loads((f / peft.CONFIG).read_text()) for f in (source, tmp_path))
  for key in ("r", "lora_alpha", "lora_dropout", "bias", "peft_type", "rank_pattern"):
    assert was[key] == now[key], key
  assert (now["base_model_name_or_path"], now["revision"]) == ("owner/name", "main")
  if isinstance(was["target_modules"], list):
    assert sorted(was["target_modules"]) == now["target_modules"]
  else:  # fc1 alone would be that of the pooling head too.
    modules = {key.removeprefix("base_model.model.").rsplit(".", 2)[0] for key in a}
    assert now["target_modules"] == sorted(modules)
  again = lora.load_peft(bigvlm.load(FIXTURES / "hub" / name), tmp_path)
  jax.tree.map(np.testing.assert_array_equal, model.params, again.params)


def changed(tmp_path, tensors=None, **config):
  """The adapter of PaliGemma with other tensors and fields of its config."""
  folder = tmp_path / "adapter"
  shutil.copytree(FIXTURES / "peft" / "paligemma-0", folder)
  made = load_file(folder / peft.TENSORS)
  save_file((tensors or dict)(made), folder / peft.TENSORS)
  cfg = json.loads((folder / peft.CONFIG).read_text()) | config
  (folder / peft.CONFIG).write_text(json.dumps(cfg))
  return folder


Q0 = "base_model.model.model.language_model.layers.0.self_attn.q_proj."


def test_ranks_and_scales_may_differ(plain, batch, tmp_path):
  """rank_pattern, alpha_pattern, rsLoRA, and layers without an adapter."""

  def fewer(made):
    out = {k: v for k, v in made.items() if "language_model.layers.1." not in k}
    out[f"{Q0}lora_A.weight"] = out[f"{Q0}lora_A.weight"][:2]
    out[f"{Q0}lora_B.weight"] = out[f"{Q0}lora_B.weight"][:, :2].copy()
    return out

  first = {"language_model.layers.0.self_attn.q_proj": 2}
  pattern = dict(rank_pattern=first, alpha_pattern={"self_attn.q_proj": 4})
  folder = changed(tmp_path, fewer, **pattern, use_rslora=True)
  model = lora.load_peft(plain, folder)
  scale = np.asarray(tree.flatten(model.params)["decoder/blocks/g0/b0/attn/q/lora_scale"])
  np.testing.assert_allclose(scale, [4 / 2**0.5, 0, 4 / 3**0.5], rtol=1e-6)
  want = model.forward_hf(batch)["logits"]
  lora.save_peft(model, tmp_path / "out")
  assert not any(
    "language_model.layers.1." in k for k in load_file(tmp_path / "out" / peft.TENSORS)
  )
  again = lora.load_peft(plain, tmp_path / "out")
  np.testing.assert_array_equal(again.forward_hf(batch)["logits"], want)


def drop(name):
  return lambda made: {k: v for k, v in made.items() if k != name}


def rename(old, new):
  return lambda made: {k.replace(old, new): v for k, v in made.items()}


@pytest.mark.parametrize(
  ("tensors", "config", "said"),
  [
    (None, dict(use_dora=True), "use_dora=True is not supported; only plain LoRA"),
    (None, dict(bias="all"), "bias='all' is not supported; bias='none' is"),
    (None, dict(peft_type="IA3"), "peft_type='IA3' is not supported"),
    (None, dict(modules_to_save=["lm_head"]), "modules_to_save=.*is not supported"),
    (None, dict(init_lora_weights="pissa"), "init_lora_weights='pissa' is not supported"),
    (None, dict(r=4), "is of rank 3, which adapter_config.json denies"),
    (drop(f"{Q0}lora_B.weight"), {}, "q_proj has lora_A alone of its adapter"),
    (rename("q_proj", "query"), {}, r"no linear layer .*query \(nearest: .*\)"),
    (rename("layers.0.", "layers.9."), {}, r"this model has no linear layer .*layers\.9"),
    (rename("lora_A.weight", "lora_embedding_A"), {}, "is no part of a LoRA adapter"),
    (
      lambda made: made | {f"{Q0}lora_B.weight": np.zeros((5, 3), np.float32)},
      {},
      r"q_proj.lora_B.weight has shape \[5, 3\], but decoder/blocks/g0/b0/attn/q",
    ),
  ],
)
def test_files_that_do_not_fit_are_refused(plain, tmp_path, tensors, config, said):
  with pytest.raises(ValueError, match=said):
    lora.load_peft(plain, changed(tmp_path, tensors, **config))


def test_a_changed_byte_is_refused(plain, params, tmp_path):
  model = bigvlm.load(FIXTURES / "hub" / "paligemma-0")
  model.params = params
  lora.save_peft(model, tmp_path)
  raw = bytearray((tmp_path / peft.TENSORS).read_bytes())
  raw[-3] ^= 1
  (tmp_path / peft.TENSORS).write_bytes(bytes(raw))
  with pytest.raises(ValueError, match="the bytes of .* changed since it was written"):
    lora.load_peft(plain, tmp_path)


def test_what_peft_cannot_hold_is_refused(tmp_path):
  model = bigvlm.load(FIXTURES / "hub" / "siglip-0")
  with pytest.raises(ValueError, match="there is no LoRA adapter in these parameters"):
    lora.save_peft(model, tmp_path / "out")
  for name in ("q", "o"):  # Of one fused operation.
    model.params = lora.add(
      lora.strip(model.params), 2, (f".*/pool/attn/{name}",), rng=jax.random.key(0)
    )
    with pytest.raises(ValueError, match="is no linear layer of its own in transformers"):
      lora.save_peft(model, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_adapters_over_a_mesh(devices, plain, batch):
  mesh = mesh_lib.make(dict(data=2, fsdp=4, tensor=1), devices)
  spread = bigvlm.load(FIXTURES / "hub" / "paligemma-0", mesh=mesh)
  model = lora.load_peft(spread, FIXTURES / "peft" / "paligemma-0")
  merged, _ = lora.merge(model.params)
  want = lora.merge(lora.load_peft(plain, FIXTURES / "peft" / "paligemma-0").params)[0]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), merged, want)
