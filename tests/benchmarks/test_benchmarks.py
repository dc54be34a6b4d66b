"""Every benchmark runs at small sizes and prints lines that the table can be made of."""

import json
import math
import os
import subprocess
import sys
import types as python_types

import jax
import numpy as np
import pytest

from benchmarks import common, contest, lines, run, workloads
from bigvlm import build, zoo

# Needs nothing that the test extra lacks: no peers.
RUNS = {
  "train_step siglip": ["train_step", "--tiny", "--kinds=siglip", "--dtypes=bfloat16"],
  "train_step paligemma": ["train_step", "--tiny", "--kinds=paligemma", "--dtypes=float32"],
  "vit_forward": ["vit_forward", "--tiny", "--dtypes=bfloat16"],
  "decode": ["decode", *run.BENCHMARKS["decode"][1], "--dtypes=float32", "--batches=1"],
  "losses": ["losses", "--tiny", "--kinds=sigmoid"],
  "checkpoint": ["checkpoint", *run.BENCHMARKS["checkpoint"][1]],
  "startup": ["startup", "--tiny", "--dtypes=float32", "--repeats=1"],
  "input_pipeline": ["input_pipeline", "--tiny"],
  "host_memory": ["host_memory", *run.BENCHMARKS["host_memory"][1]],
}


def lines_of(root, *command):
  paths = [str(root), str(root / "benchmarks")]
  env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
  env.pop("XLA_FLAGS", None)  # One device, as where it is meant to run.
  done = subprocess.run(
    [sys.executable, "-m", *command], cwd=root, env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", RUNS)
def test_emits_valid_lines(root, name):
  module, *flags = RUNS[name]
  lines = lines_of(root, f"benchmarks.{module}", *flags)
  assert lines
  for line in lines:
    assert line["name"].startswith((module, "sigmoid_loss", "prefill", "first_token"))
    assert math.isfinite(line["seconds"])
    assert line["host"]["cores"] >= 1
    if module in ("train_step", "vit_forward"):
      assert line["who"] == "bigvlm"
      assert line["seconds"] >= line["best_seconds"] > 0
      assert line["fraction"] > 0 and line["peak_rss_gib"] > 0.05
  assert "| must |" in run.page(lines, [])
  if module == "decode":
    assert [line["name"] for line in lines] == ["prefill", "decode", "first_token", "first_token"]
    assert lines[1]["tokens_per_s"] > 0
    assert [line["start"] for line in lines[2:]] == ["cold", "warm"]
  if module == "startup":
    assert [line["start"] for line in lines] == ["cold", "warm"]


def test_peer_that_fails_does_not_end_the_contest(root, monkeypatch, capfd):
  monkeypatch.setenv("PYTHONPATH", str(root))
  module = "tests.benchmarks.player"
  contest.run("toy", module, ["bigvlm", "other"], [], "float32", rounds=3, kind="none")
  lines = run.parse(capfd.readouterr().out)
  other, ours = sorted(lines, key=lambda line: line["who"], reverse=True)
  assert ours["rounds"] == 3 and ours["kind"] == "none" and ours["gemm_gflops"] > 0
  assert "ended with code" in other["error"] and "seconds" not in other


@pytest.mark.parametrize(("kind", "tflop"), [("siglip", 1.115), ("paligemma", 0.288)])
def test_operations_of_a_step(kind, tflop):
  cfg = workloads.get_config(f"kind={kind}")
  rows = cfg.stages[0].batch_size
  shapes = zoo.abstract_batch(cfg.model, cfg.processor, rows)
  read = jax.ShapeDtypeStruct((rows, workloads.TEXT_LEN), np.int32)
  batch = dict(tokens=shapes.text.tokens, read=read, image=shapes.media["image"].pixels)
  built = python_types.SimpleNamespace(module=build.model(cfg.model))
  assert workloads.operations(built, batch) / 1e12 == pytest.approx(tflop, rel=2e-3)


def test_paligemma_batch_supervises_every_suffix_token(tmp_path):
  workloads.prepare(tmp_path)
  cfg = workloads.get_config("kind=paligemma,tiny")
  spec = build.processor(cfg.model, cfg.processor, tmp_path).spec()
  out = workloads.arrays("paligemma", spec, 4, 2048)
  assert set(out) - {"vote"} == set(spec) - {"ids"}
  images = out["tokens"].shape[1] - workloads.TEXT_LEN
  after = np.take_along_axis(out["tokens"], out["read"] + 1, axis=1)
  np.testing.assert_array_equal(after, out["labels"])
  assert out["weights"].min() == 1
  assert out["block"][:, :images].max() == 0
  np.testing.assert_array_equal(out["block"][0, images:], np.arange(1, workloads.TEXT_LEN + 1))


def line(**fields):
  host = dict(cores=2, cpu="a processor", python="3", avx512_bf16=True)
  return dict(seconds=1.0, load=0.5, host=host, **fields)


def test_page_says_what_holds():
  step = dict(name="train_step", kind="siglip")
  lines = [
    line(who="bigvlm", dtype="float32", fraction=0.64, gemm_gflops=480.0, **step),
    line(who="bigvlm", dtype="bfloat16", **step),
    line(who="transformers", dtype="bfloat16", **step) | dict(seconds=0.9),
    line(name="decode", who="bigvlm", dtype="bfloat16", batch=8, tokens_per_s=300.0),
    line(name="decode", who="transformers", dtype="bfloat16", batch=8) | dict(seconds=1.4),
    line(name="first_token", who="bigvlm", dtype="float32", start="cold"),
    line(name="first_token", who="bigvlm", dtype="float32", start="warm") | dict(seconds=0.3),
    line(name="first_token", who="big_vision", dtype="float32", start="cold") | dict(seconds=1.0),
    line(name="checkpoint_blocking", system="bigvlm", mib=1024) | dict(seconds=0.05),
  ]
  rows = [row for row in run.page(lines, ["losses"]).splitlines() if row.startswith("|")]
  met = dict(zip((must.says for must in run.MUSTS), rows[2:], strict=False))
  words = [(must.says[:8], met[must.says].split("|")[3].strip()) for must in run.MUSTS]
  known = [("SigLIP B", "yes"), ("SigLIP B", "**no**"), ("Decoding", "**no**")]
  assert [pair for pair in words if pair[1] != "-"] == [
    *known,
    ("First to", "yes"),
    ("First to", "**no**"),  # In a second, but no sooner than big_vision.
    ("Saving 1", "yes"),
  ]
  assert "`losses` failed" in run.page(lines, ["losses"])


@pytest.mark.parametrize(
  ("cold", "warm", "met"), [(0.97, 0.29, True), (0.98, 0.29, False), (0.97, 0.30, False)]
)
def test_first_token_is_measured_in_big_visions_too(cold, warm, met):
  of = dict(name="first_token", dtype="float32")
  lines = [
    line(who="big_vision", start="cold", **of) | dict(seconds=2.0),
    line(who="bigvlm", start="cold", **of) | dict(seconds=2.0 * cold),
    line(who="bigvlm", start="warm", **of) | dict(seconds=2.0 * warm),
  ]
  (must,) = [m for m in run.MUSTS if "of big_vision's" in m.says]
  assert must.check(lines) == (f"{cold:.2f} and {warm:.2f}", met)
  assert must.check(lines[1:]) is None


def test_fastest_peer_decides_and_a_part_says_only_what_it_measured():
  seconds = dict(bigvlm=1.0, transformers=2.0, big_vision=1.4)
  lines = [
    line(name="decode", who=who, dtype="float32", batch=8, tokens_per_s=9.0) | dict(seconds=taken)
    for who, taken in seconds.items()
  ]
  text = run.page(lines, [], "generation", "decode")
  assert text.startswith("## Generation\n") and "--only=decode --section=generation`" in text
  rows = [row for row in text.splitlines() if row.endswith(("yes |", "no** |"))]
  assert len(rows) == 1 and "1.40 times as fast as big_vision" in rows[0]
  assert rows[0].endswith("**no** |")


def test_later_line_of_the_same_thing_counts():
  text = "\n".join(
    json.dumps(line(name="startup", who="bigvlm", start="cold", dtype="float32", **extra))
    for extra in (dict(layers="loop"), dict(layers="scan"), dict(layers="loop", again=True))
  )
  found = run.parse("noise\n" + text)
  assert [x["layers"] for x in found] == ["loop", "scan"]
  assert found[0]["again"]


def test_sections_are_kept_apart(tmp_path):
  path = tmp_path / "RESULTS.md"
  common.write_section("speed", "## Speed\n\nfast", path)
  common.write_section("soak", "## Soak\n\nsound", path)
  common.write_section("speed", "## Speed\n\nfaster", path)
  text = path.read_text()
  assert "faster" in text and "sound" in text and "fast\n" not in text
  assert text.index("faster") < text.index("sound")


def test_lines_hold_code(tmp_path):
  file = tmp_path / "x.py"
  file.write_text(
    '"""Doc\nof two."""\n\nx = (  # why\n  1\n)\n\n\ndef f():\n  """Doc."""\n  # note\n'
  )
  assert lines.code(file) == 4


def test_a_system_costs_less_than_sixty_lines():
  found = lines.medians(lines.costs())
  assert max(found["config + map"], found["config + map + own"]) < 60, found
