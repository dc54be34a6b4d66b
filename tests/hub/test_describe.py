"""A model that came from no file is described so that its family's reader reads it again."""

import importlib
import json
import pathlib

import jax
import numpy as np
import pytest

import bigvlm
from bigvlm import build, zoo
from bigvlm import config as config_lib
from bigvlm.hub import describe, table
from bigvlm.hub.model import HubModel
from bigvlm.utils import tree

FAMILIES = [name for name in zoo.names() if name != "pali"]  # Nobody has a class for PaLI.
SIZES = {f: importlib.import_module(f"bigvlm.configs.models.{f}").SIZES for f in FAMILIES}
TOYS = [
  *FAMILIES,
  "blip2:flan_t5_xl",
  "blip2:itm_vit_g",
  "deepseek_vl:7b",
  "idefics3:smolvlm_256m",
  "internvl:2.5_26b",
  "llava:interleave_qwen_0.5b",
  "opt:350m",
]


def described(cfg):
  size, length = build.image_size(cfg["processor"]), cfg["processor"]["text_len"]
  return describe.describe(
    cfg["model"], size, length, "float32", family=cfg["name"], hub=cfg["hub"]
  )


def plain(name):
  return config_lib.plain(zoo.load_config(name))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_published_size_reads_as_itself(family):
  for size in SIZES[family]:
    cfg = plain(f"{family}:{size}")
    written, system = described(cfg)
    read = table.system(json.loads(json.dumps(written)), "here")
    ours, theirs = build.model(cfg["model"]), build.model(system.model)
    assert describe.difference(ours, theirs) == "", size
    assert read.map == system.map
    for key, value in cfg["hub"].items():
      assert written[key] == value or isinstance(value, dict), (size, key)


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_written_and_loaded(name, tmp_path):
  cfg = plain(f"{name}{',' if ':' in name else ':'}tiny")
  written, system = described(cfg)
  rng = np.random.default_rng(0)
  shapes = zoo.abstract_params(cfg)
  params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), shapes)
  model = HubModel(cfg, build.model(cfg["model"]), params, None, None, system, json=written)
  model.save_hf(tmp_path)
  back = tree.flatten(bigvlm.load(tmp_path).params)
  ours = tree.flatten(params)
  assert back.keys() == ours.keys()
  for key, x in ours.items():
    assert np.asarray(back[key]).tobytes() == x.tobytes(), key
  vocab = cfg["model"].get("decoder", {}).get("vocab")
  for key, value in written.items():
    if key.endswith(("token_id", "token_index")) and isinstance(value, int):
      assert value <= vocab, key


@pytest.mark.parametrize(
  ("name", "change", "words"),
  [
    ("llava:1.5_7b", dict(decoder=dict(norm_after=True)), "Llava.*decoder.norm_after is True"),
    ("mllama:11b", dict(decoder=dict(tied=True)), "Mllama.*decoder.tied is True"),
    ("qwen2:0.5b", dict(decoder=dict(qk_norm=True)), "Qwen2ForCausalLM.*decoder.qk_norm is True"),
    ("pali:3b", {}, "model.decoder is 'EncDec'"),
  ],
)
def test_what_no_class_is_is_refused_by_name(name, change, words):
  cfg = zoo.load_config("pali:size=3b" if name == "pali:3b" else name)
  cfg.model = config_lib.merge(cfg.model, change)
  with pytest.raises(ValueError, match=words):
    described(config_lib.plain(cfg))


def test_what_a_class_can_say_is_said():
  cfg = zoo.load_config("llava:1.5_7b")
  text = dict(depth=3, width=96, hidden=80, heads=4, kv_heads=2, head_dim=24, rope_base=5e5)
  rotary = dict(kind="llama3", factor=8.0, low=1.0, high=4.0, length=512)
  image = dict(depth=5, width=64, heads=4, hidden=72, patch=12)
  change = dict(decoder=text | dict(rotary=rotary, vocab=999), encoders=dict(image=image))
  cfg.model = config_lib.merge(cfg.model, change)
  written, _ = described(config_lib.plain(cfg) | dict(hub={}))
  inner, vision = written["text_config"], written["vision_config"]
  assert (inner["num_hidden_layers"], inner["hidden_size"], inner["vocab_size"]) == (3, 96, 999)
  assert (vision["num_hidden_layers"], vision["patch_size"], vision["image_size"]) == (5, 12, 336)
  assert inner["rope_parameters"]["rope_type"] == "llama3" and written["image_token_index"] < 999


@pytest.mark.parametrize("name", ["gemma-1", "idefics2-0", "llama_yarn-1", "vipllava-1", "vit-0"])
def test_the_references_own_configs_come_out_of_their_models_again(name):
  folder = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "hub" / name
  given = json.loads((folder / "config.json").read_text())
  system = table.system(given, name)
  size, length, family = system.image_size, system.text_len, given["model_type"]
  written, again = describe.describe(system.model, size, length, "float32", family=family)
  assert written["architectures"] == given["architectures"]
  assert again.map.rules == system.map.rules and again.map.tied == system.map.tied
