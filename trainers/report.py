"""What a run leaves for people: report.md, curves.png, predictions.png, mistakes.png.

Everything is made from files of the workdir (summary.json, metrics.jsonl, predictions/), so that a
finished run can write its report again without a model.
"""

import base64
import io
import json
import math
import pathlib
import platform
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from bigvlm.trainers import metrics
from bigvlm.utils import draw

_SHOWN = 4  # predictions of one evaluator in the first picture
_MISTAKES = 12
_LOSS = "train/loss"
_COLUMNS = 4


def collect(evaluators: Mapping, model, n: int = 24) -> list[dict]:
  """The first `n` predictions of each evaluator ({name: Evaluator}); not chosen by their outcome.

  In a multi-process run all processes must call it.
  """
  return [
    record | {"evaluator": name}
    for name, evaluator in evaluators.items()
    for record in evaluator.predictions(model, n)
  ]


def save_records(workdir: str | pathlib.Path, stage: str, records: Sequence[Mapping]) -> None:
  """Keeps prediction records (see `evaluators.base`) in predictions/STAGE.json of the workdir."""
  path = pathlib.Path(workdir) / "predictions" / f"{stage}.json"
  metrics.write_atomic(path, json.dumps([_pack(record) for record in records]) + "\n")


def load_records(workdir: str | pathlib.Path, stage: str) -> list[dict]:
  """What `save_records` kept; empty when it was not called for the stage."""
  path = pathlib.Path(workdir) / "predictions" / f"{stage}.json"
  if not path.exists():
    return []
  return [_unpack(record) for record in json.loads(path.read_text())]


_PIXELS = ("image", "mask", "target_mask")


def _pack(record: Mapping) -> dict:
  out = dict(record)
  for key in _PIXELS:
    if out[key] is not None:
      file = io.BytesIO()
      Image.fromarray(np.asarray(out[key])).save(file, "png")
      out[key] = base64.b64encode(file.getvalue()).decode()
  return out


def _unpack(record: Mapping) -> dict:
  out = dict(record)
  for key in _PIXELS:
    if out[key] is not None:
      out[key] = np.array(Image.open(io.BytesIO(base64.b64decode(out[key]))))
  return out


def write(workdir: str | pathlib.Path) -> None:
  """Writes the report of a workdir from what lies in it.

  Of each evaluator the predictions after the last stage that ran it are shown.
  """
  summary = json.loads((pathlib.Path(workdir) / "summary.json").read_text())
  latest: dict[str, list[dict]] = {}
  for stage in summary["stages"]:
    kept: dict[str, list[dict]] = {}
    for record in load_records(workdir, stage["name"]):
      kept.setdefault(record["evaluator"], []).append(record | {"stage": stage["name"]})
    latest.update(kept)
  write_report(workdir, summary, [record for group in latest.values() for record in group])


def write_report(
  workdir: str | pathlib.Path, summary: Mapping, records: Sequence[Mapping] = ()
) -> None:
  """Writes report.md and its pictures.

  Args:
    workdir: the folder of the run; `metrics.jsonl` and `config.json` are read where they exist.
    summary: {"seconds", "stages": [{"name", "steps", "seconds", "metrics": {name: float}}]}.
    records: predictions (see `evaluators.base`), with `evaluator` (its name) and, where it is
      known, `stage` (after which they were made).

  Raises:
    ValueError: a metric that is not a finite number; names the stage and the metric.
  """
  workdir = pathlib.Path(workdir)
  stages = summary["stages"]
  check(stages)
  workdir.mkdir(parents=True, exist_ok=True)
  parts = [f"# {_name(workdir)}\n", _intro(summary), _stage_table(stages), _metric_table(stages)]
  rows = plots(stages, read_lines(workdir / "metrics.jsonl"))
  if rows:
    draw.curves(rows, str(workdir / "curves.png"))
    parts.append("## Curves\n\n![loss by stage, and metrics over the stages](curves.png)\n")
  parts += _pictures(workdir, records)
  parts.append(_again(workdir))
  metrics.write_atomic(workdir / "report.md", "\n".join(parts))


def check(stages: Sequence[Mapping]) -> None:
  """Raises a ValueError when a metric is not a finite number."""
  for stage in stages:
    for name, value in stage["metrics"].items():
      number = isinstance(value, (int, float)) and not isinstance(value, bool)
      if not number or not math.isfinite(value):
        raise ValueError(f"summary: stage {stage['name']!r}: metric {name!r} is {value!r}")


def read_lines(path: pathlib.Path) -> list[dict]:
  """The lines of a metrics.jsonl; a torn last line of a killed run is left out."""
  out = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      out.append(json.loads(line))
    except ValueError:
      continue
  return out


def _name(workdir: pathlib.Path) -> str:
  return _config(workdir).get("name") or workdir.name


def _config(workdir: pathlib.Path) -> dict:
  path = workdir / "config.json"
  return json.loads(path.read_text()) if path.exists() else {}


def _intro(summary: Mapping) -> str:
  steps = sum(stage["steps"] for stage in summary["stages"])
  return (
    f"{len(summary['stages'])} stages, {steps:,} steps, {metrics.duration(summary['seconds'])}"
    " (h:mm:ss), measured on examples that were not trained on.\n"
  )


def _stage_table(stages: Sequence[Mapping]) -> str:
  lines = ["## Stages\n", "| stage | steps | seconds | final training loss |", "|---|--:|--:|--:|"]
  for stage in stages:
    loss = stage["metrics"].get(_LOSS)
    shown = "" if loss is None else f"{loss:.4g}"
    lines.append(f"| {stage['name']} | {stage['steps']:,} | {stage['seconds']:.1f} | {shown} |")
  return "\n".join(lines) + "\n"


def _metric_table(stages: Sequence[Mapping]) -> str:
  """Metrics by stage, with the change from the stage before that measured the same."""
  names = dict.fromkeys(name for stage in stages for name in stage["metrics"] if name != _LOSS)
  if not names:
    return "## Metrics\n\nThe stages name no evaluators.\n"
  lines = [
    "## Metrics\n",
    "In brackets: the change from the last stage before that measured the same.\n",
    "| metric | " + " | ".join(stage["name"] for stage in stages) + " |",
    "|---|" + "--:|" * len(stages),
  ]
  for name in names:
    cells, before = [], None
    for stage in stages:
      value = stage["metrics"].get(name)
      if value is None:
        cells.append("")
        continue
      cells.append(f"{value:.4g}" if before is None else f"{value:.4g} ({value - before:+.3g})")
      before = value
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def plots(stages: Sequence[Mapping], lines: Sequence[Mapping]) -> list[list[dict]]:
  """Panels for `draw.curves`: the loss of each stage, then one panel for each evaluator."""
  losses = []
  for stage in stages:
    points = [(line["step"], line[_LOSS]) for line in lines if _has_loss(line, stage["name"])]
    if points:
      x, y = zip(*points, strict=True)
      title = f"{stage['name']}: training loss"
      losses.append(dict(title=title, series={"loss": (x, y)}, x_label="step"))
  names = [stage["name"] for stage in stages]
  groups: dict[str, dict] = {}
  for i, stage in enumerate(stages):
    # What was measured on the way lies between the ends of the stages.
    own = [line for line in lines if line.get("stage") == stage["name"]]
    times = [(i - 1 + line["step"] / stage["steps"], line) for line in own]
    times = [(x, line) for x, line in times if x < i] + [(i, stage["metrics"])]
    for name in (name for name in stage["metrics"] if name != _LOSS):
      group, _, short = name.rpartition("/")
      x, y = groups.setdefault(group, {}).setdefault(short, ([], []))
      points = [(at, line[name]) for at, line in times if isinstance(line.get(name), (int, float))]
      x += [at for at, _ in points]
      y += [value for _, value in points]
  for group, series in list(groups.items()):  # What is no rate would flatten those that are.
    beyond = {short for short, (_, y) in series.items() if max(y, default=0) > 1}
    if beyond and len(beyond) < len(series):
      for short in sorted(beyond):
        groups[f"{group}/{short}"] = {short: series.pop(short)}
  panels = []
  for group, series in groups.items():
    panel = dict(title=f"{group or 'metrics'}, at the end of stages", series=series, ticks=names)
    if all(0 <= value <= 1 for _, y in series.values() for value in y):
      panel["limits"] = (-0.03, 1.03)
    panels.append(panel)
  rows = [losses[i : i + 4] for i in range(0, len(losses), 4)]
  return rows + [panels[i : i + 2] for i in range(0, len(panels), 2)]


def _has_loss(line: Mapping, stage: str) -> bool:
  # A loss that was not finite is written as a string; it has no place in a plot.
  return line.get("stage") == stage and isinstance(line.get(_LOSS), (int, float))


def _pictures(workdir: pathlib.Path, records: Sequence[Mapping]) -> list[str]:
  records = [record | {"title": _title(record)} for record in records]
  groups: dict[str, list] = {}
  for record in records:
    groups.setdefault(record["title"], []).append(record)
  wrong = [record for record in records if not record["right"]]
  for name in ("predictions.png", "mistakes.png"):
    (workdir / name).unlink(missing_ok=True)  # of an earlier report, about another model
  if not records:
    return []
  parts = ["## What it sees\n"]
  first = [record for group in groups.values() for record in group[:_SHOWN]]
  draw.grid(first, _COLUMNS).save(workdir / "predictions.png")
  parts.append(
    f"The first {_SHOWN} held-out examples of every evaluator, not chosen: right answers are green,"
    " wrong ones red with the target below (target boxes and masks in thin white).\n"
  )
  parts.append("![predictions](predictions.png)\n")
  parts.append("## What it gets wrong\n")
  counts = [
    f"{name or 'all'} {sum(not record['right'] for record in group)} of {len(group)}"
    for name, group in groups.items()
  ]
  parts.append(f"Wrong among the first examples of each evaluator: {'; '.join(counts)}.\n")
  if wrong:
    shown = _spread(wrong, _MISTAKES)
    draw.grid(shown, _COLUMNS).save(workdir / "mistakes.png")
    parts.append(f"{len(shown)} of these {len(wrong)} mistakes:\n\n![mistakes](mistakes.png)\n")
  return parts


def _title(record: Mapping) -> str:
  name, stage = record.get("evaluator", ""), record.get("stage", "")
  return f"{name} after {stage}" if stage else name


def _spread(records: Sequence[dict], most: int) -> list[dict]:
  """At most `most` records: the first of every evaluator, then the second, .. in their order."""
  seen: dict[str, int] = {}
  turns = []
  for i, record in enumerate(records):
    seen[record["title"]] = seen.get(record["title"], -1) + 1
    turns.append((seen[record["title"]], i))
  return [records[i] for i in sorted(i for _, i in sorted(turns)[:most])]


def _again(workdir: pathlib.Path) -> str:
  import jax

  import bigvlm

  config = _config(workdir)
  devices = jax.devices()
  lines = ["## How to run it again\n"]
  name = config.get("name", "")
  if name:
    lines.append(f"    bigvlm train configs/{name.replace(':', '.py:')}")
    lines[-1] += "" if ":" in name else ".py"
    lines.append("")
  lines.append(
    "`config.json` holds the resolved config"
    + (f" (seed {config['seed']})" if "seed" in config else "")
    + "; the order of examples depends on the seed and the step alone. This run: bigvlm"
    f" {bigvlm.__version__}, jax {jax.__version__}, Python {platform.python_version()},"
    f" {len(devices)} x {devices[0].device_kind}."
  )
  return "\n".join(lines) + "\n"
