"""Encoders from the hub: published sizes, and configs and inputs that cannot be read."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bigvlm
from bigvlm import zoo
from bigvlm.hub import table
from tests.parity.sizes_encoders import SIZES

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "hub"


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
  config, count = SIZES[name]
  system = table.system(config, name)
  processor = dict(image=dict(size=system.image_size), text_len=system.text_len)
  params = zoo.abstract_params(dict(model=system.model, processor=processor, dtype={}))
  assert sum(x.size for x in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
  ("config", "words"),
  [
    (dict(architectures=["ViTModel"], patch_size=[16, 8]), "16x8 is not square"),
    (dict(architectures=["ViTModel"], num_channels=1), "num_channels is 1"),
    (dict(architectures=["ViTModel"], pooler_act="gelu"), "pooler_act is 'gelu'"),
    (dict(architectures=["ViTModel"], hidden_act="mish"), "mish"),
    (dict(architectures=["Dinov2Model"], image_size=[28, 42]), "2x3 positions"),
    (dict(architectures=["Aimv2Model"], vision_config=dict(use_head=False)), "use_head is false"),
    (dict(architectures=["Siglip2Model"], vision_config=dict(num_patches=8)), "num_patches is 8"),
  ],
)
def test_configs_that_are_refused(config, words):
  with pytest.raises(ValueError, match=words):
    table.system(config, "config.json")


def test_the_older_copy_of_a_part_of_clip_wins():
  text = dict(hidden_size=24, num_attention_heads=3)
  config = dict(
    architectures=["CLIPModel"],
    text_config=dict(hidden_size=48, eos_token_id=2, hidden_act="gelu"),
    text_config_dict=text,
    vision_config=dict(patch_size=8),
    vision_config_dict=None,
  )
  model = table.system(config, "config.json").model
  assert {k: model["text"][k] for k in ("width", "heads", "eos", "act", "pool")} == dict(
    width=24, heads=3, eos=49_407, act="quick_gelu", pool="eos"
  )
  assert model["encoders"]["image"]["patch"] == 8


def load(name):
  folder = FIXTURES / f"{name}-0"
  with np.load(folder / "io.npz") as z:
    return bigvlm.load(folder), {k[3:]: v for k, v in z.items() if k.startswith("in_")}


@pytest.fixture(scope="module")
def naflex():
  return load("siglip2")


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda x: dict(pixel_values=x["pixel_values"][..., 1:]), "pixel_values must be"),
    (lambda x: dict(spatial_shapes=x["spatial_shapes"] + 9), r"spatial_shapes\[0\] is 12x17"),
    (lambda x: dict(spatial_shapes=x["spatial_shapes"][:1]), r"spatial_shapes must be \[3, 2\]"),
    (lambda x: dict(spatial_shapes=None), "lack spatial_shapes"),
    (lambda x: dict(position_ids=np.arange(13)[None] + 1), "position_ids must count up"),
    (lambda x: dict(input_ids=x["input_ids"] + 96), "the vocabulary has 99 ids"),
    (lambda x: dict(pixel_mask=x["pixel_values"]), "pixel_mask"),
  ],
)
def test_inputs_that_are_refused(naflex, change, words):
  model, inputs = naflex
  with pytest.raises(ValueError, match=words):
    model.forward_hf(inputs | change(inputs))


def test_pooled_padding_sees_the_text_and_no_padding():
  model, inputs = load("siglip")
  ids = inputs["input_ids"]
  mask = np.ones_like(ids)
  mask[:, 6:] = 0

  def embed(ids):
    return model.forward_hf(dict(input_ids=ids, attention_mask=mask))["text_embeds"]

  other_padding, other_text = ids.copy(), ids.copy()
  other_padding[:, 6:-1] = 7
  other_text[:, 5] = 7
  np.testing.assert_allclose(embed(other_padding), embed(ids), atol=1e-6)
  assert np.abs(embed(other_text) - embed(ids)).max() > 1e-3


def test_aimv2_is_causal_only_under_a_mask():
  model, inputs = load("aimv2")
  ids = np.full_like(inputs["input_ids"], 5)
  ids[:, 4] = 97  # The end of the text, which is pooled.
  later = ids.copy()
  later[:, 8] = 6

  def changed(**mask):
    a, b = (model.forward_hf(dict(input_ids=x, **mask))["text_embeds"] for x in (ids, later))
    return np.abs(a - b).max()

  assert changed(attention_mask=np.ones_like(ids)) < 1e-6
  assert changed() > 1e-3


def test_images_and_texts_alone_give_what_they_give_together(naflex):
  model, inputs = naflex
  both = model.forward_hf(inputs)
  images = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
  texts = {k: inputs[k][:2] for k in ("input_ids", "attention_mask")}
  np.testing.assert_allclose(
    model.forward_hf(images)["image_embeds"], both["image_embeds"], atol=1e-6
  )
  out = model.forward_hf(texts)
  assert out.keys() == {"text_embeds"}
  np.testing.assert_allclose(out["text_embeds"], both["text_embeds"][:2], atol=1e-6)
  assert model.forward_hf(images | texts)["logits_per_image"].shape == (3, 2)


def test_names_of_the_modules_of_transformers_5(tmp_path):
  folder = FIXTURES / "vit-0"
  stored = load_file(folder / "model.safetensors")
  pairs = (
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
  )
  renamed = {}
  for name, x in stored.items():
    for old, new in pairs:
      name = name.replace(old, new)
    renamed[name] = x
  assert renamed.keys() != stored.keys()
  save_file(renamed, tmp_path / "model.safetensors")
  shutil.copy(folder / "config.json", tmp_path)
  model = bigvlm.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, model.params, bigvlm.load(folder).params)
  model.save_hf(tmp_path / "out")
  assert load_file(tmp_path / "out" / "model.safetensors").keys() == renamed.keys()


def test_a_vit_without_its_pooler_gives_its_hidden_states(tmp_path):
  whole = bigvlm.load(FIXTURES / "vit-0")
  stored = load_file(FIXTURES / "vit-0" / "model.safetensors")
  left = {k: v for k, v in stored.items() if "pooler" not in k}
  assert len(left) == len(stored) - 2
  save_file(left, tmp_path / "model.safetensors", metadata={"format": "pt"})
  (tmp_path / "config.json").write_bytes((FIXTURES / "vit-0" / "config.json").read_bytes())
  model = bigvlm.load(tmp_path)
  with np.load(FIXTURES / "vit-0" / "io.npz") as z:
    given = {"pixel_values": z["in_pixel_values"]}
  out = model.forward_hf(given)
  assert out.keys() == {"last_hidden_state"}
  np.testing.assert_array_equal(
    out["last_hidden_state"], whole.forward_hf(given)["last_hidden_state"]
  )
  model.save_hf(tmp_path / "out")
  assert load_file(tmp_path / "out" / "model.safetensors").keys() == left.keys()
