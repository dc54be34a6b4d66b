"""Two processes of one run, of which one fails in an evaluator."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

_ONE = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from jax.experimental import multihost_utils
from bigvlm.evaluators import table
from bigvlm.trainers import together
together._LOOK = together._GRACE = 0.2


class Source(list):
  name = "memory"


class Model:
  def generate(self, images, prompts, **how):
    if jax.process_index() == int(sys.argv[3]):
      raise ValueError("the prompt of example 3 is too long")
    multihost_utils.process_allgather(np.int32(len(prompts)))  # Where the others wait.
    return ["1"] * len(prompts)


rows = (dict(image=np.zeros((8, 8, 3), np.uint8), prefix="a", suffix="1") for _ in range(4))
with together.Together():
  table.make(dict(name="x", kind="vqa", data=Source(rows))).run(Model())
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_the_other_process_says_why_and_ends(failing):
  with socket.socket() as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  root = str(pathlib.Path(__file__).resolve().parents[2])
  env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": root}
  command = [sys.executable, "-c", _ONE, address]
  runs = [
    subprocess.Popen([*command, str(i), str(failing)], env=env, text=True, stdout=-1, stderr=-2)
    for i in range(2)
  ]
  # Far less than the half minute after which a collective gives up.
  said = [run.communicate(timeout=25)[0] for run in runs]
  other = 1 - failing
  assert runs[failing].returncode == 1 and "ValueError: evaluator 'x': the prompt" in said[failing]
  want = f"process {failing} failed: evaluator 'x': the prompt of example 3 is too long"
  assert runs[other].returncode == 1 and want in said[other], said
