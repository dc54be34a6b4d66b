"""The shipped configs of published systems: sizes, the models that config.json describes, toys."""

import jax
import pytest

from bigvlm import build, zoo
from bigvlm.hub import describe, table
from tests.parity import sizes_texts, sizes_vlms

SIZES = sizes_texts.SIZES | sizes_vlms.SIZES
# One of each kind of slots.
TOYS = sorted({name.split(":")[0] for name in SIZES}) + [
  "blip2:flan_t5_xl",
  "blip2:itm_vit_g",
  "deepseek_vl:7b",
  "idefics3:smolvlm_256m",
  "internvl:2.5_26b",
  "llava:interleave_qwen_0.5b",
  "opt:350m",
]


@pytest.mark.parametrize("name", SIZES)
def test_a_zoo_name_is_its_checkpoints_model(name):
  published, count = SIZES[name]
  cfg = zoo.load_config(name)
  assert sum(x.size for x in jax.tree.leaves(zoo.abstract_params(cfg))) == count
  model = table.system(published, name).model
  if name in sizes_vlms.HEADED:
    model = model | dict(decoder=model["decoder"] | dict(tied=False))
  assert describe.difference(build.model(cfg.model), build.model(model)) == ""


@pytest.mark.parametrize("name", TOYS)
def test_the_toy_is_small_and_made_of_the_same_slots(name):
  size = "" if ":" in name else ":"
  whole, toy = (zoo.load_config(f"{name}{size}{arg}") for arg in ("", ",tiny"))
  leaves = jax.tree.leaves(zoo.abstract_params(toy))
  assert sum(x.size for x in leaves) < 300_000
  assert toy.init.source == "" and whole.init.source.startswith("hf:")
  for slot in ("connector", "fusion", "decoder"):
    assert toy.model.get(slot, {}).get("kind") == whole.model.get(slot, {}).get("kind")
  kinds = [{n: e.kind for n, e in c.model.get("encoders", {}).items()} for c in (whole, toy)]
  assert kinds[0] == kinds[1]


def test_a_size_is_a_bare_word_or_named():
  bare, named = (zoo.load_config(f"llava:{arg},res=448") for arg in ("1.5_13b", "size=1.5_13b"))
  assert bare == named and bare.processor.image.size == 448
  with pytest.raises(ValueError, match=r"llava size.*1\.5_14b.*1\.5_13b"):
    zoo.load_config("llava:size=1.5_14b")
