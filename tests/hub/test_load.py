"""Names, refusals and the ways a loaded model is used besides parity."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bigvlm
from bigvlm import cli
from bigvlm.hub import files, table
from bigvlm.hub import load as hub_load
from bigvlm.utils import tree

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "hub"
SIGLIP, PALIGEMMA = FOLDER / "siglip-0", FOLDER / "paligemma-0"


def inputs(folder):
  with np.load(folder / "io.npz") as z:
    return {k[3:]: z[k] for k in z if k.startswith("in_")}


@pytest.fixture
def copied(tmp_path):
  target = tmp_path / "model"
  shutil.copytree(SIGLIP, target)
  return target


def rewrite(folder, change):
  found = load_file(folder / "model.safetensors")
  change(found)
  save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_hub_id_is_fetched_at_its_revision_and_never_as_a_pickle(monkeypatch):
  import huggingface_hub

  asked = {}

  def fetch(repo, revision=None, allow_patterns=()):
    asked.update(repo=repo, revision=revision, patterns=allow_patterns)
    return str(SIGLIP)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
  model = bigvlm.load("someone/siglip-tiny@v2")
  assert (asked["repo"], asked["revision"]) == ("someone/siglip-tiny", "v2")
  assert not any(p.endswith((".bin", ".pt")) for p in asked["patterns"])
  assert model.params["t"].shape == (1,)
  bigvlm.load("hf:someone/siglip-tiny")
  assert asked["revision"] is None


def test_a_path_comes_before_a_hub_id(monkeypatch, tmp_path, copied):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "owner").mkdir()
  copied.rename(tmp_path / "owner" / "name")
  model = bigvlm.load("owner/name")
  monkeypatch.chdir("/")  # Its files are found wherever we are.
  assert model.directory == tmp_path / "owner" / "name"


def test_a_zoo_name_names_its_checkpoint(monkeypatch):
  asked = []
  monkeypatch.setattr(hub_load, "_fetch", lambda name: asked.append(name) or SIGLIP)
  hub_load.resolve("siglip:variant=L/16,res=384")
  hub_load.resolve("paligemma:size=2-3b,res=448")
  hub_load.resolve("paligemma")
  assert asked == [
    "google/siglip-large-patch16-384",
    "google/paligemma2-3b-pt-448",
    "google/paligemma-3b-pt-224",
  ]


def test_a_fetch_that_fails_is_one_line(monkeypatch):
  import huggingface_hub

  def fetch(*args, **kwargs):
    raise OSError("no network\nand more")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
  with pytest.raises(ValueError, match=r"^some/where is no path here.*failed: no network$"):
    bigvlm.load("some/where")


def test_names_that_are_nothing():
  with pytest.raises(FileNotFoundError, match=r"no checkpoint at ./nowhere"):
    bigvlm.load("./nowhere")
  for name in ("mine.npz", "a/b/c", "some where/model.safetensors"):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint at {name}"):
      bigvlm.load(name)
  with pytest.raises(ValueError, match=r"unknown model or config 'sigliip'; did you mean 'siglip'"):
    bigvlm.load("sigliip")


def test_an_unknown_architecture_lists_those_there_are(copied):
  (copied / "config.json").write_text('{"architectures": ["SiglipModle"]}')
  with pytest.raises(
    ValueError, match=r"'SiglipModle'; did you mean 'SiglipModel'.*adding_a_system"
  ):
    bigvlm.load(copied)


def test_a_config_that_is_not_json_names_the_file(copied):
  (copied / "config.json").write_text('{"architectures": ')
  with pytest.raises(ValueError, match=r"config.json is not JSON.*line 1"):
    bigvlm.load(copied)


def test_a_missing_tensor_names_the_nearest(copied):
  def change(found):
    found["vision_model.post_layernorm.weigth"] = found.pop("vision_model.post_layernorm.weight")

  rewrite(copied, change)
  with pytest.raises(ValueError, match=r"post_layernorm.weight \(nearest: .*weigth\)"):
    bigvlm.load(copied)


def test_a_tensor_of_another_shape_names_both(copied):
  rewrite(copied, lambda found: found.update({"logit_scale": np.zeros(2, np.float32)}))
  with pytest.raises(
    ValueError, match=r"logit_scale has shape \[2\], but t of this model wants \[1\]"
  ):
    bigvlm.load(copied)


def test_an_id_above_the_vocabulary_names_its_place():
  given = inputs(SIGLIP)
  given["input_ids"] = given["input_ids"].copy()
  given["input_ids"][1, 2] = 10**6
  with pytest.raises(ValueError, match=r"input_ids\[1, 2\] is 1000000, but the vocabulary has"):
    bigvlm.load(SIGLIP).forward_hf(given)


@pytest.mark.parametrize(
  "change, says",
  [
    (dict(input_ids=np.full((1, 3), -1)), r"input_ids\[0, 0\] is -1, but the vocabulary has"),
    (dict(input_ids=np.ones((1, 3), np.float32)), "input_ids must be integers, not float32"),
    (dict(input_ids=np.array([["a", "b"]])), "input_ids is no array of numbers, but of <U1"),
    (dict(input_ids=[[1, 2], [3]]), "input_ids has rows of different lengths"),
    (dict(input_ids=np.zeros((2, 0), int)), r"input_ids must be \[B, T\], not \[2, 0\]"),
    (dict(attention_mask=np.ones((1, 2))), r"attention_mask is \[1, 2\], but input_ids is"),
    (dict(pixel_values=np.zeros((0, 3, 34, 34))), r"pixel_values must be .*not \[0, 3, 34, 34\]"),
    (dict(pixel_values=np.zeros((1, 3, 5, 34))), "images of 5x34 hold no patch of encoder 'image'"),
    (dict(pixel_values=None, input_ids=None), "the inputs lack both pixel_values and input_ids"),
  ],
)
def test_inputs_that_are_none(change, says):
  with pytest.raises(ValueError, match=f"^{says}"):
    bigvlm.load(SIGLIP).forward_hf(inputs(SIGLIP) | change)


def test_inputs_that_are_no_dict():
  with pytest.raises(ValueError, match="^the inputs are a dict of arrays, not a list$"):
    bigvlm.load(SIGLIP).forward_hf([1, 2])


@pytest.mark.parametrize(
  "key, value, says",
  [
    ("hidden_size", float("nan"), "config.json is not JSON: hidden_size is nan"),
    ("hidden_size", "48", "vision_config: hidden_size is '48', not a positive whole number"),
    ("num_attention_heads", 0, "num_attention_heads is 0, not a positive whole number"),
    ("image_size", [16], r"a size is a number of pixels or \[height, width\], not \[16\]"),
    ("layer_norm_eps", "small", "the config of .* describes no model that can be built: "),
  ],
)
def test_a_config_without_sense_is_one_line(copied, key, value, says):
  config = json.loads((copied / "config.json").read_text())
  config["vision_config"][key] = value
  (copied / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=says) as e:
    bigvlm.load(copied)
  assert "\n" not in str(e.value)


def test_a_tensor_that_holds_no_floating_numbers_is_refused(copied):
  rewrite(copied, lambda found: found.update({"logit_scale": np.zeros(1, np.int32)}))
  with pytest.raises(ValueError, match=r"logit_scale holds int32, but t of this model wants"):
    bigvlm.load(copied)


def test_an_index_that_is_none_is_refused(copied):
  (copied / "model.safetensors").unlink()
  (copied / "model.safetensors.index.json").write_text('{"weights": {}}')
  with pytest.raises(ValueError, match=r"index.json has no weight_map of tensors and files$"):
    bigvlm.load(copied)


def test_what_was_written_before_is_cleared_away(tmp_path, monkeypatch):
  model = bigvlm.load(SIGLIP)
  monkeypatch.setattr(files.write_tensors, "__defaults__", (30_000,))
  model.save_hf(tmp_path)
  assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
  monkeypatch.undo()
  model.save_hf(tmp_path)  # One file over shards,
  assert [f.name for f in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
  shards = load_file(tmp_path / "model.safetensors")
  monkeypatch.setattr(files.write_tensors, "__defaults__", (30_000,))
  bigvlm.load(tmp_path).save_hf(tmp_path)  # and shards over the file that they are read from.
  assert not (tmp_path / "model.safetensors").exists()
  source = hub_load.describe(tmp_path)[1]
  assert set(source.specs()) == set(shards)
  for name, x in shards.items():
    np.testing.assert_array_equal(source.read(name), x)


@pytest.mark.parametrize("dtype", ["float64", "bf16", "int8"])
def test_a_dtype_that_parameters_cannot_have(dtype, tmp_path):
  with pytest.raises(ValueError, match=rf"unknown dtype '{dtype}'.*bfloat16, float16, float32"):
    bigvlm.load(SIGLIP, dtype=dtype)
  with pytest.raises(ValueError, match="unknown dtype"):
    bigvlm.load(SIGLIP).save_hf(tmp_path, dtype=dtype)
  assert not any(tmp_path.iterdir())


def test_an_excuse_may_be_one_regex(copied):
  rewrite(copied, lambda found: found.update({"extra.a": np.zeros(2), "extra.b": np.zeros(2)}))
  bigvlm.load(copied, excuse=r"extra\..")
  with pytest.raises(ValueError, match="excuse='\\(' is no regex"):
    bigvlm.load(copied, excuse="(")


def test_an_input_it_does_not_have():
  with pytest.raises(ValueError, match=r"unknown input 'pixel_value'; did you mean 'pixel_values'"):
    bigvlm.load(SIGLIP).forward_hf({"pixel_value": np.zeros((1, 3, 8, 8))})


def test_images_and_texts_in_different_numbers():
  model, given = bigvlm.load(SIGLIP), inputs(SIGLIP)
  one = dict(given, pixel_values=given["pixel_values"][:1])
  whole, part = model.forward_hf(given), model.forward_hf(one)
  assert part["logits_per_image"].shape == (1, len(given["input_ids"]))
  np.testing.assert_allclose(part["logits_per_image"], whole["logits_per_image"][:1], rtol=1e-5)
  assert "logits_per_text" not in model.forward_hf({"input_ids": given["input_ids"]})


def test_a_flipped_byte_of_what_we_wrote_is_refused(tmp_path):
  bigvlm.load(SIGLIP).save_hf(tmp_path)
  file = tmp_path / "model.safetensors"
  whole = bytearray(file.read_bytes())
  whole[-5] ^= 1
  file.write_bytes(bytes(whole))
  with pytest.raises(ValueError, match=r"the bytes of \S+ changed since it was written"):
    bigvlm.load(tmp_path)
  bigvlm.load(tmp_path, verify="off")


def test_a_model_at_another_size_is_written_at_that_size(tmp_path):
  model = bigvlm.load(PALIGEMMA)
  patch = model.module.encoders["image"].patch
  size = (3 * patch, 4 * patch)
  large = bigvlm.load(PALIGEMMA, res=size)
  assert large.params["encoders"]["image"]["posemb"].shape[1] == 12
  large.save_hf(tmp_path)
  again = bigvlm.load(tmp_path)
  assert again.system.image_size == size
  jax.tree.map(np.testing.assert_array_equal, again.params, large.params)
  with pytest.raises(ValueError, match=r"holds no patch"):
    bigvlm.load(PALIGEMMA, res=1)


@pytest.mark.parametrize("axis", ["x", "tensor", "data"])
def test_over_a_mesh_it_gives_the_same(devices, axis):
  mesh = jax.make_mesh((4,), (axis,), devices=devices[:4])
  one, many = bigvlm.load(PALIGEMMA), bigvlm.load(PALIGEMMA, mesh=mesh)
  if axis == "x":
    spread = [x for x in jax.tree.leaves(many.params) if not x.is_fully_replicated]
    assert len(spread) > 10
  given = inputs(PALIGEMMA)
  a, b = (m.forward_hf(given)["logits"] for m in (one, many))
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_a_model_on_devices_of_other_processes_is_not_asked(monkeypatch):
  model = bigvlm.load(PALIGEMMA)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  for call in (model.forward_hf, model.generate_hf):
    with pytest.raises(ValueError, match=r"devices of several processes.*jax.local_devices"):
      call(inputs(PALIGEMMA))


def test_dtype_casts_and_is_written(tmp_path):
  model = bigvlm.load(SIGLIP, dtype="bfloat16")
  assert {str(x.dtype) for x in jax.tree.leaves(model.params)} == {"bfloat16"}
  model.save_hf(tmp_path)
  assert {str(x.dtype) for x in load_file(tmp_path / "model.safetensors").values()} == {"bfloat16"}
  config = json.loads((tmp_path / "config.json").read_text())
  assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"


@pytest.mark.parametrize("name", ["siglip:tiny,vocab=64", "paligemma:tiny"])
def test_a_model_that_came_from_nowhere_is_written_in_the_hubs_names(name, tmp_path):
  model = bigvlm.load(name, init=None)
  model.save_hf(tmp_path)
  again = bigvlm.load(tmp_path)
  ours, theirs = tree.flatten(model.params), tree.flatten(again.params)
  assert ours.keys() == theirs.keys()
  for key, x in ours.items():
    np.testing.assert_array_equal(x, theirs[key], err_msg=key)
  names = load_file(tmp_path / "model.safetensors").keys()
  wanted = {"siglip": "vision_model.head.probe", "paligemma": "language_model.model.norm.weight"}
  assert wanted[name.split(":")[0]] in names


def test_what_transformers_has_no_class_for_is_refused(tmp_path):
  from bigvlm.hub import describe

  model = bigvlm.load("siglip:tiny,vocab=64", init=None).config["model"]
  model["encoders"]["image"]["stem"] = "conv"
  with pytest.raises(ValueError, match=r"SiglipModel .* is not this model: .*stem is 'conv'"):
    describe.describe(model, (16, 16), 8, "float32")


def test_convert_and_info(tmp_path, capsys):
  assert cli.main(["convert", str(SIGLIP), str(tmp_path / "out"), "--dtype=bfloat16"]) == 0
  assert load_file(tmp_path / "out" / "model.safetensors")["logit_bias"].dtype.name == "bfloat16"
  assert cli.main(["info", str(SIGLIP)]) == 0
  shown = capsys.readouterr().out
  assert "two_tower" in shown
  assert "vision_model.encoder.layers.1.self_attn.q_proj.weight" in shown
  assert "encoders/image/blocks/g0/b0/attn/q/kernel[1]  (h d) i -> i h d" in shown


def test_convert_says_what_is_wrong_in_one_line(tmp_path, capsys):
  assert cli.main(["convert", str(tmp_path), str(tmp_path / "out")]) == 2
  assert "has no config.json" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_what_is_written_is_readable_as_any_file(tmp_path):
  model = bigvlm.load(SIGLIP)
  model.save_hf(tmp_path / "hf")
  model.save_npz(tmp_path / "model.npz")
  (tmp_path / "plain").touch()
  wanted = (tmp_path / "plain").stat().st_mode
  for file in [*(tmp_path / "hf").iterdir(), tmp_path / "model.npz"]:
    assert file.stat().st_mode == wanted, file.name


@pytest.mark.parametrize(
  "name", ["deepseek_vl-1", "deepseek_vl_hybrid-1", "idefics_plain-1", "idefics2-1"]
)
def test_names_of_files_of_a_model_without_a_head_are_read(name):
  folder = FOLDER / name
  system = table.system(json.loads((folder / "config.json").read_text()), name)
  names = [key for key in load_file(folder / "model.safetensors") if key != "lm_head.weight"]
  below = [key.removeprefix("model.") for key in names]
  assert [system.map.canonical(key) for key in below] == list(map(system.map.canonical, names))


def test_a_model_without_a_head_gives_its_hidden_states(tmp_path):
  shutil.copytree(PALIGEMMA, tmp_path / "in")
  cfg = json.loads((PALIGEMMA / "config.json").read_text())
  (tmp_path / "in" / "config.json").write_text(
    json.dumps(cfg | {"architectures": ["PaliGemmaModel"]})
  )
  model = bigvlm.load(tmp_path / "in")
  hidden = model.forward_hf(inputs(PALIGEMMA))["last_hidden_state"]
  with np.load(PALIGEMMA / "io.npz") as z:
    logits, mask = z["out_logits"], z["mask"]
  found = (hidden @ np.asarray(model.params["decoder"]["embedding"]).T)[mask]
  assert np.abs(found - logits[mask]).max() <= 1e-5 * np.abs(logits[mask]).max()
  with pytest.raises(ValueError, match="generate"):
    model.generate_hf(inputs(PALIGEMMA), max_new_tokens=2)
  model.save_hf(tmp_path / "out")
  a, b = (load_file(tmp_path / side / "model.safetensors") for side in ("in", "out"))
  assert {k: x.tobytes() for k, x in a.items()} == {k: x.tobytes() for k, x in b.items()}


def test_queries_need_embeddings_as_wide_as_the_layers():
  cfg = json.loads((FOLDER / "blip2_opt-0" / "config.json").read_text())
  cfg["text_config"]["word_embed_proj_dim"] = 12
  with pytest.raises(ValueError, match="word_embed_proj_dim 12 is not hidden_size"):
    table.system(cfg, "config.json")
