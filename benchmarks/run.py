"""Runs every benchmark, peers included, and writes the table that says what holds: RESULTS.md.

Usage: python -m benchmarks.run [--only=losses,train_step --section=losses] [--tiny]
       python -m benchmarks.run --table LINES.jsonl... [--only=losses --section=losses]

Prints all JSON lines; `--table` writes the page from lines that were kept instead of measuring
(of two lines on the same thing the later counts). Peers that are not installed are left out:
`pip install -e .[bench]` brings them. Needs an idle machine and about half an hour.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import common

# Flags of each, and those that show only that it runs. `soak` is another command, with a
# section of its own.
BENCHMARKS = {
  "train_step": (["--peers"], ["--tiny", "--rounds=2"]),
  "vit_forward": (["--peers"], ["--tiny", "--rounds=2"]),
  "decode": (["--peers", "--rounds=9"], ["--tiny", "--rounds=2", "--starts=1", "--new=8"]),
  "losses": ([], ["--tiny"]),
  "input_pipeline": ([], ["--tiny"]),
  "checkpoint": ([], ["--mib=32", "--repeats=1"]),
  "startup": (["--peers"], ["--tiny", "--repeats=1"]),
  "load_checkpoint": ([], ["--tiny"]),
  "tiny_checkpoint": ([], ["--tiny"]),
  "host_memory": ([], ["--tiny", "--rounds=1"]),
}
# What tells two lines apart; the other fields were measured.
_KEYS = ("name", "who", "system", "kind", "dtype", "batch", "start", "n", "chunk", "mib", "layers")
Lines = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Must:
  """A promise: `says` in words, `check(lines) -> (measured in words, whether it holds)`.

  `check` gives None when the line it needs is not there.
  """

  says: str
  check: Callable[[Lines], tuple[str, bool] | None]


def find(lines: Lines, **fields: Any) -> dict[str, Any] | None:
  """The line of these fields that was measured last, or None."""
  hits = [x for x in lines if "error" not in x and all(x.get(k) == v for k, v in fields.items())]
  return hits[-1] if hits else None


def _fraction(kind: str, least: float):
  def check(lines):
    line = find(lines, name="train_step", who="bigvlm", kind=kind, dtype="float32")
    if line is None:
      return None
    share = f"{line['fraction']:.0%} of {line['gemm_gflops']:.0f} GFLOP/s"
    return f"{line['seconds']:.2f} s a step = {share}", line["fraction"] >= least

  return check


def _not_slower(name: str, peer: str, **fields: Any):
  def check(lines):
    ours, other = (find(lines, name=name, who=who, **fields) for who in ("bigvlm", peer))
    if ours is None or other is None:
      return None
    # Rounds alternate; medians that differ by less than the clock shows are equal.
    words = f"{ours['seconds']:.2f} s, {peer} {other['seconds']:.2f} s"
    if not ours["host"].get("avx512_bf16") and fields["dtype"] == "bfloat16":
      words += " (this processor lacks avx512_bf16: says little)"
    ratio = other["seconds"] / ours["seconds"]
    return f"{words}: {ratio:.2f} times as fast", ratio >= 1.0

  return check


def _loss_memory(lines):
  line = find(lines, name="sigmoid_loss", n=32768, dtype="float32")
  if line is None:
    return None
  memory = line["memory_gib"]
  return f"{memory:.2f} GiB, {line['seconds']:.1f} s ({line['fraction']:.0%} of the limit)", (
    memory <= 1.0
  )


def _pipeline(lines):
  rows = [x for x in lines if x["name"].startswith("input_pipeline") and "ratio" in x]
  if not rows:
    return None
  each = [
    f"{x['images_per_second_per_core']:.0f} images/s, {x['ratio']:.2f} times {x['peer']}"
    for x in rows
  ]
  return "; ".join(each), all(x["ratio"] >= 1.0 for x in rows)


def _blocking(lines):
  line = find(lines, name="checkpoint_blocking", system="bigvlm", mib=1024)
  if line is None:
    return None
  return f"{line['seconds']:.3f} s", line["seconds"] <= 0.07


def _cold(lines):
  line = find(lines, name="startup", who="bigvlm", start="cold", dtype="float32")
  if line is None:
    return None
  warm = find(lines, name="startup", who="bigvlm", start="warm", dtype="float32")
  words = f"{line['seconds']:.1f} s" + (f" (warm {warm['seconds']:.1f} s)" if warm else "")
  return f"{words}, layers={line['layers']}", line["seconds"] <= 12.0


def _beyond(lines):
  line = find(lines, name="load_checkpoint", who="bigvlm")
  if line is None:
    return None
  words = f"{line['beyond']:.2f} times {line['largest_mib']:.0f} MiB, {line['gib']:.1f} GiB loaded"
  return words, line["beyond"] <= 1.3


def _generation(name: str, least: float):
  """Both dtypes and batches against the fastest peer; the worst of them has to do."""

  def check(lines):
    words, ratios = [], []
    for dtype in ("float32", "bfloat16"):
      for batch in (1, 8):
        fields = dict(name=name, dtype=dtype, batch=batch)
        ours = find(lines, who="bigvlm", **fields)
        others = [find(lines, who=who, **fields) for who in ("transformers", "big_vision")]
        others = [line for line in others if line]
        if ours is None or not others:
          continue
        best = min(others, key=lambda line: line["seconds"])
        ratios.append(best["seconds"] / ours["seconds"])
        speed = f"{ours['tokens_per_s']:.0f} tokens/s" if name == "decode" else _ms(ours)
        words.append(f"{dtype} {batch}: {speed}, {ratios[-1]:.2f} times as fast as {best['who']}")
    return ("; ".join(words), min(ratios) >= least) if ratios else None

  return check


def _ms(line) -> str:
  return f"{1000 * line['seconds']:.0f} ms"


def _first_token(lines):
  words, good = [], True
  for dtype in ("float32", "bfloat16"):
    for who in ("bigvlm", "big_vision"):
      of = dict(name="first_token", who=who, dtype=dtype)
      found = [find(lines, start=start, **of) for start in ("cold", "warm")]
      if None not in found:
        cold, warm = (line["seconds"] for line in found)
        words.append(f"{dtype}, {who}: {cold:.2f} s, {warm:.2f} s")
        good = good and (who != "bigvlm" or (cold <= 1.0 and warm <= 0.3))
  return ("; ".join(words), good) if words else None


def _first_token_beside(lines):
  """The same musts, in units of big_vision's cold start: it took 1.03 s where they were set."""
  of = dict(name="first_token", dtype="float32")
  theirs = find(lines, who="big_vision", start="cold", **of)
  ours = [find(lines, who="bigvlm", start=start, **of) for start in ("cold", "warm")]
  if theirs is None or None in ours:
    return None
  cold, warm = (line["seconds"] / theirs["seconds"] for line in ours)
  return f"{cold:.2f} and {warm:.2f}", cold <= 1.0 / 1.03 and warm <= 0.3 / 1.03


def _tiny(lines):
  rows = [x for x in lines if x["name"] == "tiny_checkpoint" and "error" not in x]
  if not rows:
    return None
  worst = max(rows, key=lambda x: x["seconds"])
  words = f"at most {worst['seconds']:.1f} s ({worst['system']}, of {len(rows)} systems)"
  return words, worst["seconds"] <= 20


_BF16 = dict(dtype="bfloat16")
MUSTS = (
  Must(
    "SigLIP B/16, batch 8, float32: at least 63 % of the limit of matrix products",
    _fraction("siglip", 0.63),
  ),
  Must(
    "SigLIP B/16, batch 8, bfloat16: no slower than transformers",
    _not_slower("train_step", "transformers", kind="siglip", **_BF16),
  ),
  Must(
    "Reduced PaliGemma, batch 4, float32: at least 49 % of the limit of matrix products",
    _fraction("paligemma", 0.49),
  ),
  Must(
    "Reduced PaliGemma, batch 4, bfloat16: no slower than transformers",
    _not_slower("train_step", "transformers", kind="paligemma", **_BF16),
  ),
  Must(
    "Prefill of the reduced PaliGemma, batch 1 and 8: no slower than the fastest peer",
    _generation("prefill", 1.0),
  ),
  Must(
    "Decoding 64 tokens, batch 1 and 8: 1.5 times as fast as the fastest peer",
    _generation("decode", 1.5),
  ),
  Must(
    "First token: within 1 s with nothing compiled, 0.3 s with a compilation cache", _first_token
  ),
  Must(
    "First token, float32: at most 0.97 of big_vision's with nothing compiled, 0.29 of that with a "
    "compilation cache",
    _first_token_beside,
  ),
  Must("Sigmoid loss and gradients of 32,768 pairs: at most 1 GiB", _loss_memory),
  Must("Input pipeline, one core: no slower than plain grain + OpenCV", _pipeline),
  Must(
    "A tiny checkpoint, nothing compiled: load, two forward_hf and generate_hf, save in 20 s", _tiny
  ),
  Must("Loading 4 GiB to 8 devices: beyond the parameters at most 1.3 tensors", _beyond),
  Must("Saving 1 GiB: holds the training up for at most 0.07 s", _blocking),
  Must("SigLIP B/16, process start to first step, nothing compiled: at most 12 s", _cold),
)


def measure(names: list[str], tiny: bool) -> tuple[Lines, list[str]]:
  """Runs benchmarks one after the other; gives their lines and the names of those that failed."""
  lines, failed = [], []
  paths = (str(common.ROOT), str(common.ROOT / "benchmarks"), os.environ.get("PYTHONPATH", ""))
  env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
  for name in names:
    print(f"[bench] {name}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", *BENCHMARKS[name][tiny]]
    process = subprocess.Popen(command, cwd=common.ROOT, env=env, stdout=subprocess.PIPE, text=True)
    for text in process.stdout:
      print(text, end="", flush=True)
      lines += parse(text)
    if process.wait():
      print(f"[bench] {name} failed, code {process.returncode}", file=sys.stderr, flush=True)
      failed.append(name)
  return lines, failed


def parse(text: str) -> Lines:
  """The measurements among lines of text, in order, each thing once (the last counts)."""
  found: dict[tuple, dict] = {}
  for line in text.splitlines():
    if line.startswith("{"):
      fields = json.loads(line)
      found[tuple(fields.get(key) for key in _KEYS)] = fields
  return list(found.values())


def page(lines: Lines, failed: list[str], section: str = "speed", only: str = "") -> str:
  """A section of RESULTS.md; one that is not `speed` is of the benchmarks that `only` names."""
  host = max((x["host"] for x in lines), key=len, default={})
  whole = section == "speed"
  title, command = "Speed and memory", "make bench"
  if not whole:
    title, command = (
      section.capitalize(),
      f"python -m benchmarks.run --only={only} --section={section}",
    )
  out = [
    f"## {title}",
    "",
    f"`{command}`, {datetime.date.today().isoformat()}, on {host.get('cores', '?')} cores of "
    f"{host.get('cpu', 'an unknown processor')}"
    + (" with avx512_bf16" if host.get("avx512_bf16") else " without avx512_bf16")
    + f", Python {host.get('python', '?')}; load average {_loads(lines)}.",
    f"Versions: {_versions(lines)}.",
    "",
    "Times are medians of rounds in which the competitors take turns. The limit of matrix "
    "products is that of XLA on this machine, measured in the same run.",
    "",
    "| must | measured | met |",
    "| --- | --- | --- |",
  ]
  for must in MUSTS:
    found = must.check(lines)
    if found or whole:
      words, met = found or ("not measured", None)
      out.append(f"| {must.says} | {words} | {_word(met)} |")
  for name in failed:
    out += ["", f"The benchmark `{name}` failed in this run."]
  out += ["", "All that was measured:", "", "| what | time | more |", "| --- | --- | --- |"]
  out += [_row(line) for line in lines]
  return "\n".join(out)


def _word(met: bool | None) -> str:
  return {True: "yes", False: "**no**", None: "-"}[met]


def _loads(lines: Lines) -> str:
  loads = [x["load"] for x in lines]
  return f"{min(loads):.1f} to {max(loads):.1f}" if loads else "unknown"


def _versions(lines: Lines) -> str:
  found = {}
  for line in lines:
    found |= line.get("versions", {}) | {k: v for k, v in line["host"].items() if k == "jax"}
  return ", ".join(f"{name} {version}" for name, version in sorted(found.items())) or "unknown"


def _row(line: dict[str, Any]) -> str:
  shown = ("who", "system", "kind", "n", "mib", "dtype", "batch", "mode", "start", "layers")
  what = ", ".join([line["name"]] + [str(line[k]) for k in shown if line.get(k) not in (None, "")])
  if "error" in line:
    return f"| {what} | - | {line['error']} |"
  units = dict(
    examples_per_s="{:.4g} examples/s",
    tokens_per_s="{:.4g} tokens/s",
    images_per_second_per_core="{:.0f} images/s a core",
    gib_per_s="{:.2g} GiB/s",
    peak_rss_gib="peak {:.2f} GiB",
    memory_gib="{:.2f} GiB",
    fraction="{:.0%} of the limit",
    ratio="ratio {:.2f}",
    of_restore="{:.0%} of a restore",
  )
  more = ", ".join(words.format(line[key]) for key, words in units.items() if key in line)
  return f"| {what} | {line['seconds']:.3g} s | {more} |"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", default=",".join(BENCHMARKS), help="benchmarks to run")
  parser.add_argument("--table", nargs="+", type=pathlib.Path, help="files of lines to show")
  parser.add_argument("--section", default="speed", help="of the page: another one for a part")
  parser.add_argument("--tiny", action="store_true", help="see that all run; the page stays")
  args = parser.parse_args()
  failed: list[str] = []
  if args.table:
    lines = parse("\n".join(path.read_text() for path in args.table))
  else:
    lines, failed = measure(args.only.split(","), args.tiny)
  text = page(lines, failed, args.section, args.only)
  if not args.tiny:
    common.write_section(args.section, text)
  print(text, file=sys.stderr)
  sys.exit(1 if failed else 0)


if __name__ == "__main__":
  main()
