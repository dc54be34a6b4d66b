"""The `bigvlm` command as a person meets it."""

import os
import subprocess
import sys

import pytest

from bigvlm import cli


def bigvlm(*argv, cwd, **env):
  command = [sys.executable, "-m", "bigvlm.cli", *map(str, argv)]
  path = os.pathsep.join(filter(None, (env.pop("root", ""), os.environ.get("PYTHONPATH"))))
  environment = {**os.environ, "PYTHONPATH": path, **env}
  return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def said(capsys, *argv):
  """(exit code, stdout, stderr) of a command run in this process."""
  try:
    code = cli.main([str(a) for a in argv])
  except SystemExit as e:
    code = e.code
  out = capsys.readouterr()
  return code, out.out, out.err


def test_help(capsys):
  code, out, _ = said(capsys, "--help")
  assert code == 0
  for command in cli.COMMANDS:
    assert f"\n  {command} " in out
  assert said(capsys)[1] == out


@pytest.mark.parametrize(
  "command, words",
  [
    ("train", ("--workdir", "--stages", "--config.FIELD", "BIGVLM_CACHE", "goes on where")),
    ("eval", ("WORKDIR", "--stage", "JSON")),
    ("predict", ("--image", "--prompt", "--out", '"detect 7"')),
    ("info", ("NAME", "siglip", "configs/quickstart.py")),
  ],
)
def test_help_of_each_command_has_examples(capsys, command, words):
  code, out, _ = said(capsys, command, "--help")
  assert code == 0
  for word in ("examples:", f"bigvlm {command}", *words):
    assert word in out


@pytest.mark.parametrize(
  "argv, words",
  [
    (("trian",), ("unknown command 'trian'", "did you mean 'train'")),
    (("train", "no_such.py"), ("no config file no_such.py", "quickstart")),
    (("train", "quikstart"), ("unknown config 'quikstart'", "did you mean 'quickstart'")),
    (("train", "quickstart", "--config.sead=1"), ("unknown field 'sead'", "'seed'")),
    (("train", "quickstart", "--wrkdir=1"), ("unknown flag '--wrkdir'", "'--workdir'")),
    (("info", "sigilp"), ("unknown", "sigilp", "did you mean 'siglip'")),
    (("eval", "no/such/run"), ("no/such/run",)),
    (("predict", "no/such/run", "--image", "x.png", "--prompt", "caption"), ("no/such/run",)),
    (("predict", "x"), ("--image, --prompt", "bigvlm predict --help")),
    (("eval",), ("WORKDIR", "bigvlm eval --help")),
  ],
)
def test_errors_are_one_line(capsys, argv, words):
  code, out, err = said(capsys, *argv)
  assert code == 2 and not out
  assert err.startswith("bigvlm: error: ") and err.count("\n") == 1
  for word in words:
    assert word in err


def test_errors_of_a_config_file_are_one_line(capsys, tmp_path):
  (tmp_path / "mine.py").write_text(
    "from bigvlm.configs import common\n"
    "def get_config(arg=None):\n"
    "  raise ValueError('res must be\\n  a multiple of 8')\n"
  )
  code, _, err = said(capsys, "train", tmp_path / "mine.py")
  assert code == 2 and err == "bigvlm: error: res must be a multiple of 8\n"


def test_unexpected_errors_keep_their_traceback(tmp_path, root):
  """A mistake within a library is no user error, and neither is one when debugging."""
  (tmp_path / "mine.py").write_text("import json\ndef get_config(arg=None):\n  json.loads('{')\n")
  done = bigvlm("train", "mine.py", cwd=tmp_path, root=str(root))
  assert done.returncode == 1 and "Traceback" in done.stderr and "JSONDecodeError" in done.stderr
  done = bigvlm("train", "no_such.py", cwd=tmp_path, root=str(root), BIGVLM_DEBUG="1")
  assert done.returncode == 1 and "Traceback" in done.stderr and "no_such.py" in done.stderr


def test_both_front_ends_say_the_same(tmp_path, root):
  """`python -m bigvlm.trainers.train --config=...` is the same program as `bigvlm train`."""
  flag = "--config.stages[99].lr=1"
  one = bigvlm("train", "quickstart:tiny", flag, cwd=tmp_path, root=str(root))
  command = [sys.executable, "-m", "bigvlm.trainers.train", "--config=quickstart:tiny", flag]
  environment = {**os.environ, "PYTHONPATH": str(root)}
  two = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert one.returncode == two.returncode == 2
  assert one.stderr == two.stderr and "no index 99" in one.stderr


def test_info(capsys):
  code, out, _ = said(capsys, "info")
  assert code == 0 and "siglip" in out.split()
  code, out, _ = said(capsys, "info", "siglip:tiny")
  assert code == 0 and "encoders/image" in out and "parameters" in out


def test_output_can_be_cut_short(tmp_path, root):
  """`bigvlm info siglip | head -1` ends without a complaint."""
  command = f"{sys.executable} -m bigvlm.cli info siglip:tiny | head -1"
  environment = {**os.environ, "PYTHONPATH": str(root)}
  done = subprocess.run(
    ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
  )
  assert "parameters" in done.stdout and not done.stderr
