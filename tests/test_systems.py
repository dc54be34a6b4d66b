"""The list of systems, its page and its drawings are those of the configs."""

import pathlib
import xml.etree.ElementTree as ET

import jax
import pytest

from bigvlm import cli, systems, zoo

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
LISTED = systems.listed()


def test_every_model_of_the_zoo_is_listed_at_every_size():
  assert set(LISTED) == set(zoo.names()) == set(systems.FAMILIES)
  for family, one in LISTED.items():
    assert list(one["sizes"]) == systems.sizes(family)
    assert one["kind"] in systems.KINDS
    assert one["kind"] == systems.kind(zoo.load_config(next(iter(one["sizes"]))).model.to_dict())


@pytest.mark.parametrize("name", ["llava:1.5_7b", "mllama:11b", "siglip:variant=B/16"])
def test_the_counts_are_those_of_the_configs(name):
  count = sum(x.size for x in jax.tree.leaves(zoo.abstract_params(zoo.load_config(name))))
  assert LISTED[name.partition(":")[0]]["sizes"][name]["parameters"] == count


def test_the_page_and_the_report_are_those_of_the_list():
  assert (DOCS / "systems.md").read_text("utf-8") == systems.page(LISTED)
  held = systems.parity((DOCS / "parity.md").read_text("utf-8"))
  for family, one in LISTED.items():
    about = systems.FAMILIES[family]
    rows = [ok for name, ok in held.items() if systems._of(name, family, about.recipes)]
    assert one["parity"] == (f"{sum(rows)}/{len(rows)}" if rows else "")


def test_every_kind_has_a_drawing_of_its_slots():
  page = (DOCS / "systems.md").read_text("utf-8")
  for flow in {one["kind"] for one in LISTED.values()}:
    file = f"{flow.replace(' ', '_').replace('-', '_')}.svg"
    assert f"(systems/{file})" in page
    words = [t.text for t in ET.parse(DOCS / "systems" / file).iter() if t.tag.endswith("text")]
    name = next(n for one in LISTED.values() if one["kind"] == flow for n in one["sizes"])
    assert words[0] == name
    model = zoo.load_config(name).model.to_dict()
    for slot, e in (model.get("encoders") or {}).items():
      assert f"{slot}: {e['kind']}" in words
    if flow == "cross-attention":
      assert "memory" in words


def test_the_command_prints_them(capsys):
  assert cli.main(["systems"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 1 + sum(len(one["sizes"]) for one in LISTED.values())
  assert any("qwen2_vl:7b" in line and "8.291 B" in line and "video" in line for line in lines)
