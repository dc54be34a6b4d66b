"""ruff finds nothing, and every file is formatted as ruff formats it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=["check", "format"])
def test_ruff(root, command):
  run = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
  done = subprocess.run(run, cwd=root, capture_output=True, text=True)
  assert done.returncode == 0, f"ruff {' '.join(command)}:\n{done.stdout}{done.stderr}"
