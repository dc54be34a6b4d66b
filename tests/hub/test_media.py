"""Pictures in the rows of a batch: few shapes, and how much of them is padding."""

import pathlib

import numpy as np
import pytest

import bigvlm
from bigvlm import generate
from bigvlm.hub import media, table, toys
from tests.parity import reference

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "hub"


def test_buckets_hold_what_they_are_asked_for_and_waste_little():
  for n in range(1, 70_000, 7):
    assert n <= media.bucket(n) <= max(1.5 * n, 1)
    assert n <= media.bucket(n, 64) <= max(n * 1.125 + 1, n + 63)
    assert media.bucket(n, 64) % 64 == 0
  assert len({media.bucket(n) for n in range(1, 65)}) == 12
  assert len({media.bucket(n, 64) for n in range(1, 2**15)}) < 64


def test_the_padding_of_the_last_call_is_told():
  model = bigvlm.load(FOLDER / "paligemma-0")
  with np.load(FOLDER / "paligemma-0" / "io.npz") as z:
    inputs = {k[3:]: v for k, v in z.items() if k.startswith("in_")}
  assert model.padding == {}
  model.forward_hf(inputs)
  rows, images = len(inputs["input_ids"]), len(inputs["pixel_values"])
  holes = (inputs["input_ids"] == model.system.options["image_token"]).sum(axis=1)
  most = round(images * holes.max() / holes.sum())
  assert model.padding["image"] == pytest.approx(1 - images / (rows * most))


def test_generation_tells_it_too():
  model = bigvlm.load(FOLDER / "paligemma-0")
  with np.load(FOLDER / "paligemma-0" / "io.npz") as z:
    model.generate_hf(reference.prompts(dict(z)), max_new_tokens=1)
  assert 0 <= model.padding["image"] < 1


def test_pictures_of_other_sizes_in_a_bucket_compile_nothing(tmp_path):
  model = bigvlm.load(toys.write("qwen2_vl", tmp_path / "toy"))
  rng, programs, waste = np.random.default_rng(0), [], set()
  for sizes in (((40, 64), (96, 96)), ((96, 96), (96, 96)), ((44, 60), (100, 104))):
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    model.generate([pictures], ["what is this"], max_new_tokens=2)
    programs.append(generate.decode._cache_size())
    waste.add(model.padding["image"])
  assert len(set(programs)) == 1 < len(waste)


def test_rows_of_idefics3_are_filled_with_the_text_models_pad_id():
  cfg = dict(architectures=["Idefics3ForConditionalGeneration"], pad_token_id=0)
  cfg["text_config"] = dict(model_type="llama", pad_token_id=5, eos_token_id=7)
  assert table.system(cfg, "config.json").options["pad"] == 5


def test_a_text_model_below_another_head_has_no_soft_cap():
  text = dict(model_type="gemma2", final_logit_softcapping=3.0)
  cfg = dict(architectures=["LlavaForConditionalGeneration"], text_config=text)
  assert table.system(cfg, "config.json").model["decoder"]["final_softcap"] == 0.0
