"""Gemmas and PaliGemmas from the hub: sizes, what is refused, prompts in and out of batches."""

import json
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bigvlm
from bigvlm import sampling, zoo
from bigvlm.hub import choosing, decoding, table
from bigvlm.layers import masks
from bigvlm.models.connectors import pool
from bigvlm.types import Features, Item, MaskSpec
from tests.parity.sizes_decoders import SIZES

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "hub"
GEMMA = dict(architectures=["GemmaForCausalLM"])
GEMMA3 = dict(architectures=["Gemma3ForCausalLM"])
VLM = dict(architectures=["PaliGemmaForConditionalGeneration"])
PATCHES = dict(image_size=56, patch_size=14)


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
  config, count = SIZES[name]
  system = table.system(config, name)
  processor = dict(image=dict(size=system.image_size or 8), text_len=system.text_len)
  params = zoo.abstract_params(dict(model=system.model, processor=processor, dtype={}))
  assert sum(x.size for x in jax.tree.leaves(params)) == count


def decoder(config):
  return table.system(config, "config.json").model["decoder"]


def test_both_styles_of_rotary_parameters_say_the_same():
  old = dict(rope_theta=5e5, rope_local_base_freq=2e4, sliding_window_pattern=3)
  old |= dict(rope_scaling=dict(type="linear", factor=8.0), num_hidden_layers=7)
  kinds = ["sliding_attention", "sliding_attention", "full_attention"]
  new = dict(
    rope_parameters=dict(
      full_attention=dict(rope_type="linear", factor=8.0, rope_theta=5e5),
      sliding_attention=dict(rope_type="default", rope_theta=2e4),
    ),
    layer_types=[kinds[i % 3] for i in range(7)],
    num_hidden_layers=7,
  )
  found = decoder(GEMMA3 | old)
  assert found == decoder(GEMMA3 | new)
  assert found["rope_bases"] == (2e4, 2e4, 5e5) and found["rope_scales"] == (1.0, 1.0, 8.0)
  assert found["windows"] == (4096, 4096, 0)


def test_the_first_gemmas_gelu_is_the_approximation():
  assert decoder(GEMMA | dict(hidden_act="gelu"))["act"] == "gelu_tanh"


def test_sub_configs_that_are_not_there_are_the_references():
  system = table.system(VLM, "config.json")
  assert system.image_size == (224, 224) and system.model["encoders"]["image"]["hidden"] == 4096
  assert system.model["decoder"]["depth"] == 18
  system = table.system(VLM | dict(text_config={}, vision_config={}), "config.json")
  assert system.model["decoder"]["depth"] == 28 and system.model["encoders"]["image"]["depth"] == 12


@pytest.mark.parametrize(
  ("config", "words"),
  [
    (GEMMA | dict(rope_scaling=dict(rope_type="ntk", factor=2.0)), "rope_type in config.json"),
    (GEMMA | dict(rope_scaling=dict(rope_type="longrope", factor=2.0)), "lacks short_factor"),
    (dict(architectures=["OPTModel"], word_embed_proj_dim=8), "word_embed_proj_dim"),
    (GEMMA | dict(hidden_act="mish"), "mish"),
    (GEMMA3 | dict(layer_types=["full_attention"]), "1 entries for 26 layers"),
    (GEMMA3 | dict(layer_types=["full"] * 26), "layer type in config.json 'full'"),
    (GEMMA3 | dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
    (VLM | dict(text_config=dict(model_type="llama")), "text_config.model_type 'llama'"),
    (VLM | dict(vision_config=dict(model_type="vit")), "vision_config.model_type 'vit'"),
    (
      dict(
        architectures=["Gemma3ForConditionalGeneration"],
        text_config=dict(model_type="gemma3_text"),
        vision_config=PATCHES,
      ),
      "mm_tokens_per_image=256",
    ),
  ],
)
def test_configs_that_are_refused(config, words):
  with pytest.raises(ValueError, match=words):
    table.system(config, "config.json")


def load(name):
  folder = FIXTURES / name
  with np.load(folder / "io.npz") as z:
    return bigvlm.load(folder), {k[3:]: v for k, v in z.items() if k.startswith("in_")}


@pytest.fixture(scope="module")
def paligemma():
  return load("paligemma2-0")


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda x: dict(input_ids=x["input_ids"] + 900), r"input_ids\[0, 0\] is 9.*113 ids"),
    (lambda x: dict(input_ids=None), "lack input_ids"),
    (lambda x: dict(attention_mask=x["attention_mask"][:, 1:]), r"attention_mask is \[3, 26\]"),
    (lambda x: dict(pixel_values=x["pixel_values"][:2]), "row [01] has .*2 images leave .* empty"),
    (lambda x: dict(pixel_values=np.repeat(x["pixel_values"], 2, 0)), "8 images.* 4, .*row 2"),
    (lambda x: dict(pixel_values=None), "row 0 has 9 .*no pixel_values"),
    (lambda x: dict(input_ids=np.where(np.arange(27) == 26, 111, x["input_ids"])), "row 0 has 10 "),
    (lambda x: dict(token_type_ids=1 - (np.arange(27) > 20) + 0 * x["input_ids"]), r"\[0, 21\]"),
    (lambda x: dict(pixel_mask=x["pixel_values"]), "pixel_mask"),
  ],
)
def test_inputs_that_are_refused(paligemma, change, words):
  model, inputs = paligemma
  with pytest.raises(ValueError, match=words):
    model.forward_hf(inputs | change(inputs))
  with pytest.raises(ValueError, match=words):
    model.generate_hf(inputs | change(inputs), max_new_tokens=2)


def test_nothing_is_generated_for_no_tokens(paligemma):
  model, inputs = paligemma
  with pytest.raises(ValueError, match="max_new_tokens"):
    model.generate_hf(inputs, max_new_tokens=0)


def rolled(inputs):
  """The same rows padded on the right."""
  out = dict(inputs)
  for key in ("input_ids", "attention_mask", "token_type_ids"):
    rows = zip(inputs[key], inputs["attention_mask"], strict=True)
    out[key] = np.stack([np.roll(row, -int((mask == 0).sum())) for row, mask in rows])
  return out


def test_the_side_of_the_padding_changes_nothing(paligemma):
  model, inputs = paligemma
  right = rolled(inputs)
  assert right["attention_mask"][:, -1].min() == 0
  a, b = model.forward_hf(inputs)["logits"], model.forward_hf(right)["logits"]
  real = inputs["attention_mask"] > 0
  np.testing.assert_allclose(a[real], b[right["attention_mask"] > 0], atol=1e-5)


@pytest.mark.parametrize("name", ["gemma-0", "gemma2-0"])
def test_padding_on_the_right_is_the_references_padding_included(name):
  """transformers goes on behind the padding; so do we, and its own logits are equal as well."""
  with np.load(FIXTURES / name / "right.npz") as z:
    io = dict(z)
  inputs = {k[3:]: v for k, v in io.items() if k.startswith("in_")}
  assert inputs["attention_mask"][:, -1].min() == 0
  model = bigvlm.load(FIXTURES / name)
  logits = model.forward_hf(inputs)["logits"]
  assert np.abs(logits - io["out_logits"]).max() <= 1e-5 * np.abs(io["out_logits"]).max()
  ids = model.generate_hf(inputs, max_new_tokens=int(io["count"]))
  np.testing.assert_array_equal(ids, io["ids"])


def test_without_a_mask_pad_ids_of_a_prompt_are_padding(paligemma):
  model, inputs = paligemma
  bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
  ids = [model.generate_hf(x, max_new_tokens=9) for x in (inputs, bare)]
  np.testing.assert_array_equal(*ids)


def test_ends_come_from_the_generation_config_or_else_the_config(tmp_path):
  system = types.SimpleNamespace(options=dict(eos=(1,), pad=0))
  model = types.SimpleNamespace(system=system, directory=tmp_path)
  assert decoding.ends(model) == ((1,), 0)
  file = tmp_path / "generation_config.json"
  for found, ends in (
    (dict(bos_token_id=2), ((), None)),
    (dict(eos_token_id=[7, 5], pad_token_id=3), ((7, 5), 3)),
    (dict(eos_token_id=[7, 5]), ((7, 5), 7)),
  ):
    file.write_text(json.dumps(found))
    assert decoding.ends(model) == ends


@pytest.mark.parametrize(
  ("found", "barred", "forced"),
  [
    (dict(), (), ()),
    (dict(min_length=9, no_repeat_ngram_size=0, guidance_scale=1.0), ((0, 3, (1, 7)),), ()),
    (dict(min_length=9, min_new_tokens=2, suppress_tokens=None), ((0, 2, (1, 7)),), ()),
    (dict(min_length=6, forced_bos_token_id=4), (), ()),
    (dict(suppress_tokens=[3], bad_words_ids=[[5], [7]]), ((0, 8, (3, 5)),), ()),
    (dict(begin_suppress_tokens=[3], forced_eos_token_id=[1, 2]), ((0, 1, (3,)),), ((7, (1, 2)),)),
  ],
)
def test_rules_of_a_generation_config_bar_and_force_tokens(tmp_path, found, barred, forced):
  system = types.SimpleNamespace(options={})
  model = types.SimpleNamespace(system=system, directory=tmp_path, json=dict(text_config=found))
  want = sampling.Sampling(barred=barred, forced=forced)
  assert choosing.rules(model, (1, 7), 6, 8) == want  # From config.json.
  (tmp_path / "generation_config.json").write_text(json.dumps(found))
  assert choosing.rules(model, (1, 7), 6, 8) == want


def test_a_row_of_one_begins_with_what_is_forced(tmp_path):
  found = dict(forced_bos_token_id=4, begin_suppress_tokens=[3], repetition_penalty=1.2)
  system = types.SimpleNamespace(options={})
  model = types.SimpleNamespace(system=system, directory=tmp_path, json=found)
  want = sampling.Sampling(repetition_penalty=1.2, barred=((1, 2, (3,)),), forced=((0, (4,)),))
  assert choosing.rules(model, (), 1, 8) == want


@pytest.mark.parametrize("found", [dict(no_repeat_ngram_size=3), dict(bad_words_ids=[[1, 2]])])
def test_rules_that_are_not_read_are_refused(tmp_path, found):
  system = types.SimpleNamespace(options={})
  model = types.SimpleNamespace(system=system, directory=tmp_path, json=found)
  with pytest.raises(ValueError, match=next(iter(found))):
    choosing.rules(model, (1,), 6, 8)


def test_a_penalty_is_on_ids_behind_the_left_padding():
  ids, mask = np.array([[0, 0, 3, 9], [2, 5, 0, 0]]), np.array([[0, 0, 1, 1], [1, 1, 0, 0]])
  used = choosing.used(ids, mask, 8)
  assert [np.flatnonzero(row).tolist() for row in used] == [[3], [0, 2, 5]]


def test_a_model_without_a_head_gives_what_its_head_would_read(tmp_path):
  whole, inputs = load("gemma-0")
  config = json.loads((FIXTURES / "gemma-0" / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(config | dict(architectures=["GemmaModel"])))
  tensors = load_file(FIXTURES / "gemma-0" / "model.safetensors")
  bare = {k.removeprefix("model."): v for k, v in tensors.items()}
  save_file(bare, tmp_path / "model.safetensors")
  body = bigvlm.load(tmp_path)
  hidden = body.forward_hf(inputs)["last_hidden_state"]
  logits = hidden @ np.asarray(whole.params["decoder"]["embedding"]).T
  np.testing.assert_allclose(logits, whole.forward_hf(inputs)["logits"], atol=1e-4)
  body.save_hf(tmp_path / "out")
  assert load_file(tmp_path / "out" / "model.safetensors").keys() == bare.keys()
  with pytest.raises(ValueError, match="generate_hf needs a model with a decoder"):
    body.generate_hf(inputs)


def test_ids_are_cut_where_the_last_row_ends():
  ids = np.array([[4, 9, 0, 0], [9, 0, 0, 0], [4, 4, 8, 0]])
  assert decoding.trim(ids, (9, 8)).shape == (3, 3)
  assert decoding.trim(ids, (9,)).shape == (3, 4)
  assert decoding.trim(ids, ()).shape == (3, 4)


def test_names_of_the_modules_of_transformers_5(paligemma, tmp_path):
  from safetensors.numpy import load_file, save_file

  folder = FIXTURES / "paligemma2-0"
  renamed = {}
  for name, x in load_file(folder / "model.safetensors").items():
    name = name.replace("language_model.model.", "language_model.").replace("vision_model.", "")
    renamed[f"model.{name}"] = x
  # What may be there besides: an alias of a tied table, a head that a decoder has no use for.
  renamed["lm_head.weight"] = renamed["model.language_model.embed_tokens.weight"].copy()
  renamed["model.vision_tower.head.probe"] = np.ones((1, 1, 48), np.float32)
  save_file(renamed, tmp_path / "model.safetensors")
  shutil.copy(folder / "config.json", tmp_path)
  model = bigvlm.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, model.params, paligemma[0].params)
  model.save_hf(tmp_path / "out")
  written = load_file(tmp_path / "out" / "model.safetensors")
  assert written.keys() == renamed.keys()
  for name, x in renamed.items():
    np.testing.assert_array_equal(written[name], x)


def test_a_window_may_leave_blocks_whole():
  column = jnp.arange(6)[None]
  spec = MaskSpec(jnp.ones_like(column), jnp.array([[0, 0, 0, 0, 1, 2]]), column)
  cut = masks.visible(spec, spec, 2)[0, 0]
  whole = masks.visible(spec, spec, 2, cut_blocks=False)[0, 0]
  np.testing.assert_array_equal(cut[3], [0, 0, 1, 1, 0, 0])
  np.testing.assert_array_equal(whole[3], [1, 1, 1, 1, 0, 0])
  np.testing.assert_array_equal(whole[4:], cut[4:])


def test_pooling_averages_squares_and_drops_what_is_left():
  made = pool.PoolConnector(out_dim=3, kernel=2, zero_init=False)
  x = jax.random.normal(jax.random.key(0), (1, 2, 25, 4))
  feats = {"image": Features(x, jnp.broadcast_to(jnp.array([[1, 0]])[:, :, None], (1, 2, 25)))}
  soft, variables = made.init_with_output(jax.random.key(1), feats)
  mean = x[0, 0].reshape(5, 5, 4)[2:4, :2].mean((0, 1))
  mean /= jnp.sqrt(jnp.square(mean).mean() + 1e-6)
  want = mean @ variables["params"]["linear"]["kernel"]
  np.testing.assert_allclose(soft.x[0, 2], want, atol=1e-5)
  assert soft.x.shape == (1, 8, 3) and soft.item.tolist() == [[1] * 4 + [0] * 4]
  np.testing.assert_array_equal(made.rows([Item(1, (1, 5, 5))])[0], np.arange(4, 8))
