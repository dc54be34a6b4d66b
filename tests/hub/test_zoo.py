"""The shipped configs of published checkpoints are the models that their config.json describes."""

import jax
import pytest

from bigvlm import zoo
from bigvlm.hub import describe, load, table
from bigvlm.utils import tree
from tests.parity import sizes_decoders, sizes_encoders

SIZES = sizes_encoders.SIZES | sizes_decoders.SIZES
NAMES = [
  "siglip:variant=B/16,res=384",
  "siglip:variant=L/16,res=256",
  "siglip:variant=So400m/14,res=384",
  "siglip:version=2",
  "siglip:version=2,variant=g-opt/16,res=256",
  "siglip:version=2,variant=B/32,res=256",
  "clip:variant=B/32",
  "clip:variant=B/16",
  "clip:variant=L/14,res=336",
  "dinov2:variant=S",
  "dinov2:variant=B",
  "dinov2:variant=L",
  "dinov2:variant=g",
  "gemma:size=2b",
  "gemma:size=7b",
  "gemma:size=2-2b",
  "gemma:size=2-9b",
  "gemma:size=2-27b",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_zoo_name_is_its_checkpoints_model(name):
  cfg = zoo.load_config(name)
  hub_id = cfg.init.source.removeprefix("hf:")
  published = table.system(SIZES[hub_id][0], hub_id)
  theirs = tree.flatten(zoo.abstract_params(load.plain_config(published, "float32")))
  ours = tree.flatten(zoo.abstract_params(cfg))
  assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
  # And the same numbers come out: every field that matters is equal.
  from bigvlm import build

  pair = (build.model(cfg.model), build.model(published.model))
  assert describe.difference(*pair) == ""


@pytest.mark.parametrize("name", ["clip", "dinov2", "gemma", "siglip", "paligemma"])
def test_the_tiny_one_is_small(name):
  shapes = jax.tree.leaves(zoo.abstract_params(zoo.load_config(f"{name}:tiny")))
  assert sum(x.size for x in shapes) < 10_000_000
