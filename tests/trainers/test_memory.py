"""`bigvlm info CONFIG --train`: what a stage holds on a device."""

import pytest

from bigvlm import cli, config
from bigvlm.trainers import memory


def rows(text):
  lines = [line.split() for line in text.splitlines()[1:]]
  names = " ".join(lines[0]).replace("GiB a device", "total").split()
  return {cells[0]: dict(zip(names[1:], cells[1:], strict=True)) for cells in lines[1:]}


def shown(capsys, *argv):
  assert cli.main(["info", *argv, "--train", "--mesh", "data=1,fsdp=1"]) == 0
  return rows(capsys.readouterr().out)


NAME = "transfers/paligemma:task=vqav2"


def test_adam_over_all_of_paligemma(capsys):
  found = shown(capsys, NAME)["vqav2"]
  count = int(found["trainable"].replace(",", ""))
  gib = 4 * count / 2**30
  assert float(found["params"]) == pytest.approx(gib, rel=0.01)
  assert float(found["opt"]) == pytest.approx(2 * gib, rel=0.01)
  assert float(found["total"]) == pytest.approx(4 * gib, rel=0.01)


def test_moments_of_a_byte_and_frozen_towers(capsys):
  found = shown(capsys, NAME, "--config.stages[0].optimizer.kind=adam8")["vqav2"]
  assert float(found["opt"]) == pytest.approx(0.25 * 2 * float(found["params"]), rel=0.05)
  no_decay = "--config.stages[0].weight_decay=()"
  frozen = shown(capsys, NAME, "--config.stages[0].train=('decoder/.*',)", no_decay)["vqav2"]
  assert float(frozen["frozen"]) > 1.5
  assert float(frozen["opt"]) == pytest.approx(2 * float(frozen["params"]), rel=0.01)


def test_a_mesh_cuts_it(devices):
  found = config.check(config.load(NAME))
  whole, cut = (
    float(rows(memory.table(found, mesh=mesh))["vqav2"]["total"])
    for mesh in ({"data": 1, "fsdp": 1}, {"fsdp": 8})
  )
  assert cut == pytest.approx(whole / 8, rel=0.02)


def test_the_compiled_step_is_more_than_the_state():
  found = config.check(config.load("quickstart:tiny"))
  found.stages = found.stages[1:2]
  plain, compiled = (rows(memory.table(found, compiled=c))["multimodal"] for c in (False, True))
  assert float(compiled["step"]) > 0
  assert float(compiled["total"]) == pytest.approx(
    float(plain["total"]) + float(compiled["step"]), rel=0.02
  )


@pytest.mark.parametrize("mesh", ["fsdp", "fsdp=x", "fsdp=0"])
def test_a_mesh_that_is_none(mesh, capsys):
  assert cli.main(["info", NAME, "--train", "--mesh", mesh]) == 2
  assert "--mesh wants AXIS=N" in capsys.readouterr().err


def test_nothing_else_takes_overrides(capsys):
  with pytest.raises(SystemExit):
    cli.main(["info", "siglip", "--config.seed=1"])
  assert "unrecognized arguments: --config.seed=1" in capsys.readouterr().err
