"""big_vision's `.npz` files against what its own code computed (see tests/parity)."""

import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest

import bigvlm
from bigvlm import zoo
from bigvlm.hub import bigvision, bigvision_files, load
from bigvlm.utils import tree
from tests.parity import make_bigvision

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "bigvision"
NAMES = sorted(p.name for p in FOLDER.iterdir())


def _io(name: str) -> tuple[dict, dict]:
  """Inputs and everything else that was recorded."""
  io = dict(np.load(FOLDER / name / "io.npz"))
  return {k[3:]: v for k, v in io.items() if k.startswith("in_")}, io


def _npz(folder: pathlib.Path) -> dict[str, np.ndarray]:
  return dict(np.load(folder / "model.npz"))


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
  assert ours.shape == theirs.shape
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _write(folder: pathlib.Path, name: str, tensors: dict, config: dict | None = None) -> None:
  """A copy of a fixture with other tensors."""
  folder.mkdir(exist_ok=True)
  config = config or json.loads((FOLDER / name / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config))
  np.savez(folder / "model.npz", **tensors)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_ids_and_bytes_are_the_references(name):
  errors, equal, exact = make_bigvision.check(FOLDER / name)
  assert max(errors.values()) <= make_bigvision.BOUND, errors
  assert equal and exact


def test_a_file_alone_and_its_config_as_an_argument(tmp_path):
  shutil.copy(FOLDER / "vit_gap" / "model.npz", tmp_path / "mine.npz")
  config = json.loads((FOLDER / "vit_gap" / "config.json").read_text())
  given, io = _io("vit_gap")
  for source in (tmp_path / "mine.npz", tmp_path):
    out = bigvlm.load(source, config=config).forward_hf(given)
    assert _error(out["logits"], io["out_logits"]) <= 1e-5
  with pytest.raises(ValueError, match="mine.npz has no config.json of big_vision.*give config="):
    bigvlm.load(tmp_path / "mine.npz")


def _old(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A ViT as files had it before 2022: parameters alone, one numbering, one table with the class
  token's position."""
  out = {}
  for key, x in tensors.items():
    key = key.removeprefix("params/")
    names = ("LayerNorm_1", "LayerNorm_2"), ("MlpBlock_0", "MlpBlock_3")
    names += (("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),)
    for new, old in names:
      key = key.replace(f"/{new}/", f"/{old}/")
    if key == "pos_embedding":
      key = "Transformer/posembed_input/pos_embedding"
      x = np.concatenate([np.full_like(x[:, :1], 0.25), x], axis=1)
    out[key] = x - 0.25 if key == "cls" else x
  return out


def test_files_of_old_versions_load_and_are_written_as_they_were(tmp_path):
  side, fixture = 24, "vit_tok"
  config = json.loads((FOLDER / fixture / "config.json").read_text())
  tensors = _npz(FOLDER / fixture)
  rng = np.random.default_rng(0)
  shape = (1, (side // 8) ** 2, config["model"]["width"])
  tensors["params/pos_embedding"] = rng.standard_normal(shape).astype(np.float32)
  image = rng.uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
  _write(tmp_path / "new", fixture, tensors)
  _write(tmp_path / "old", fixture, _old(tensors))
  new, old = (bigvlm.load(tmp_path / n) for n in ("new", "old"))
  a, b = (m.forward_hf({"image": image}) for m in (new, old))
  assert _error(b["logits"], a["logits"]) <= 1e-5
  old.save_npz(tmp_path / "out.npz")
  assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "old" / "model.npz").read_bytes()


def test_positions_that_were_added_twice_are_summed_and_come_back(tmp_path):
  tensors = _npz(FOLDER / "siglip")
  half = tensors["params/txt/pos_embedding"] / 3
  tensors["params/txt/pos_embedding"] -= half
  tensors["params/txt/Encoder_0/pos_embedding"] = half
  _write(tmp_path, "siglip", tensors)
  model = bigvlm.load(tmp_path)
  given, io = _io("siglip")
  out = model.forward_hf({"text": given["text"]})
  assert _error(out["text_embeds"], io["out_text_embeds"]) <= 1e-5
  model.save_npz(tmp_path / "out.npz")
  assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "model.npz").read_bytes()


def test_a_model_from_elsewhere_is_written_with_big_visions_names(tmp_path):
  model = bigvlm.load(FOLDER / "siglip_scan_bf16")
  model.npz = model.origin = None
  model.save_npz(tmp_path / "model.npz")
  written = _npz(tmp_path)
  assert "params/img/Transformer/encoderblock_1/LayerNorm_0/scale" in written
  assert written["params/t"].dtype == np.float32
  assert written["params/img/embedding/kernel"].dtype.str == "|V2"
  shutil.copy(FOLDER / "siglip_scan_bf16" / "config.json", tmp_path)
  given, io = _io("siglip_scan_bf16")
  out = bigvlm.load(tmp_path).forward_hf(given)
  assert _error(out["logits_per_image"], io["out_logits_per_image"]) <= 1e-5
  model.module = model.module.clone(text=model.module.text.clone(act="quick_gelu"))
  with pytest.raises(ValueError, match="big_vision has no model like this one: .*act"):
    model.save_npz(tmp_path / "clip.npz")


def test_the_transformers_form_of_a_file_computes_the_same(tmp_path):
  model = bigvlm.load(FOLDER / "siglip")
  model.save_hf(tmp_path / "hf")
  given, io = _io("siglip")
  inputs = {"pixel_values": given["image"].transpose(0, 3, 1, 2), "input_ids": given["text"]}
  out = bigvlm.load(tmp_path / "hf").forward_hf(inputs)
  assert _error(out["logits_per_image"], io["out_logits_per_image"]) <= 1e-5


def test_refusals(tmp_path):
  tensors = _npz(FOLDER / "siglip")
  name = "params/img/Transformer/encoderblock_0/LayerNorm_0/scale"
  _write(tmp_path / "missing", "siglip", {k: v for k, v in tensors.items() if k != name})
  with pytest.raises(ValueError, match=f"1 tensors missing: {name}"):
    bigvlm.load(tmp_path / "missing")
  _write(tmp_path / "extra", "siglip", tensors | {"params/img/cls": np.zeros((1, 1, 36))})
  with pytest.raises(ValueError, match="1 tensors unexpected: params/img/cls"):
    bigvlm.load(tmp_path / "extra")
  _write(tmp_path / "shape", "siglip", tensors | {name: np.zeros((35,), np.float32)})
  with pytest.raises(ValueError, match=rf"{name} has shape \[35\].*wants \[36\]"):
    bigvlm.load(tmp_path / "shape")
  _write(tmp_path / "object", "siglip", tensors | {name: np.array({"a": 1}, dtype=object)})
  with pytest.raises(ValueError, match=rf"{name} is a pickled object; save plain arrays"):
    bigvlm.load(tmp_path / "object")
  config = json.loads((FOLDER / "siglip" / "config.json").read_text())
  config["model"]["image"]["pooltype"] = "map"
  _write(tmp_path / "field", "siglip", tensors, config)
  with pytest.raises(ValueError, match="image field 'pooltype'; did you mean 'pool_type'"):
    bigvlm.load(tmp_path / "field")
  _write(tmp_path / "name", "siglip", tensors, dict(model_name="proj.image_text.two_tower"))
  with pytest.raises(ValueError, match="two_tower'; did you mean 'proj.image_text.two_towers'"):
    bigvlm.load(tmp_path / "name")
  with pytest.raises(ValueError, match="config= is for big_vision's .npz files"):
    bigvlm.load(tmp_path, config=config)


@pytest.mark.parametrize("how", ["full", "off"])
def test_a_flipped_byte_is_found_unless_told_otherwise(how, tmp_path):
  shutil.copytree(FOLDER / "vit_gap", tmp_path / "a")
  file = tmp_path / "a" / "model.npz"
  raw = bytearray(file.read_bytes())
  at = raw.index(_npz(tmp_path / "a")["params/head/kernel"].tobytes())
  raw[at + 2] ^= 1
  file.write_bytes(raw)
  if how == "full":
    with pytest.raises(ValueError, match="the bytes of params/head/kernel changed"):
      bigvlm.load(tmp_path / "a")
  else:
    bigvlm.load(tmp_path / "a", verify="off")


@pytest.mark.parametrize(
  "inputs, message",
  [
    (dict(text=np.zeros((1, 7), np.int32), image=0), r"image must be \[B H W 3\]"),
    (dict(image=np.zeros((1, 24, 24, 3), np.uint8)), r"image must be float in \[-1, 1\]"),
    (dict(text=np.zeros((1, 6), np.int32)), "text must have 7 tokens a row, not 6"),
    (dict(text=np.full((2, 7), 61)), r"text\[0, 0\] is 61, but the vocabulary has 61 ids"),
    (dict(pixel_values=np.zeros((1, 3, 24, 24))), "unknown input 'pixel_values'"),
    ({}, "the inputs lack image, and text"),
  ],
)
def test_bad_inputs_of_two_towers(inputs, message):
  model = _model("siglip")
  with pytest.raises(ValueError, match=message):
    model.forward_hf(inputs)


def test_prompts_must_be_padded_on_the_right():
  given, _ = _io("paligemma")
  mask = given["input_mask"].copy()
  mask[1, 0] = False
  with pytest.raises(ValueError, match="input_mask row 1 is not 1 for a prompt, then 0"):
    _model("paligemma").generate_hf(given | {"input_mask": mask}, max_new_tokens=1)


_MODELS = {}


def _model(name: str):
  if name not in _MODELS:
    _MODELS[name] = bigvlm.load(FOLDER / name)
  return _MODELS[name]


# Parameters of the published files, at the image size in their names.
COUNTS = {
  "webli_en_b16_224_63724782": 203_155_970,
  "webli_en_l16_256_60552751": 652_150_786,
  "webli_en_so400m_224_57633886": 877_415_602 - 48 * 1152,  # Texts of 16 tokens.
  "siglip2_b16_224": 375_187_970,
  "siglip2_so400m14_224": 1_135_463_602,
  "siglip2_g-opt16_256": 1_871_393_906,
  "pt_224.bf16": 2_923_335_408,
  "paligemma2-3b-pt-224.b16": 3_032_094_960,
  "pt_10b_448.bf16": 9_663_294_192,
}


@pytest.mark.parametrize("stem", COUNTS)
def test_released_names_are_models_of_the_published_size(stem):
  shapes = {}
  size = next(s for s in (224, 256, 448) if f"{s}" in stem.split("_6")[0])
  cfg = bigvision_files.released(stem, shapes)
  image = cfg["model"].get("image") or cfg["model"]["img"]
  patch = int(image["variant"].split("/")[1])
  shapes["params/img/pos_embedding"] = (1, (size // patch) ** 2, 0)
  if "so400m_224" in stem:
    shapes["params/txt/pos_embedding"] = (1, 16, 0)
  system = bigvision.system(cfg, shapes, stem)
  params = zoo.abstract_params(load.plain_config(system, "float32"))
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == COUNTS[stem]
  system.map.bind(tree.flatten(params))  # Every parameter has its tensor.


def test_two_towers_without_heads():
  towers = dict(image=dict(width=24, num_heads=2), text=dict(width=24, num_heads=2))
  config = dict(model_name="proj.image_text.two_towers", model=towers | dict(out_dim=[None, None]))
  model = bigvision.system(config, {}, "config.json").model
  assert (model["encoders"]["image"]["out_dim"], model["text"]["out_dim"]) == (0, 0)
  with pytest.raises(ValueError, match="out_dim is an int or .image, text., not None"):
    bigvision.system(config | dict(model=towers | dict(out_dim=None)), {}, "config.json")
