"""Draws the data flow of a model as SVG, from its config."""

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

_WIDE, _HIGH, _GAP, _EDGE = 190, 66, 46, 24
_COLOURS = {
  "input": "#f3f4f6",
  "encoder": "#dbeafe",
  "connector": "#fde68a",
  "decoder": "#bbf7d0",
  "output": "#f3f4f6",
}
_ARROW = (
  '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
  'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#374151"/></marker></defs>'
)


def svg(model: Mapping[str, Any], title: str) -> str:
  """The drawing of a `config.model`: boxes by slot, arrows between them.

  Args:
    model: plain `config.model`. title: stands above it.
  """
  columns, links = _boxes(model)
  high = max(len(column) for column in columns)
  # What the pictures go through stands above the lane of the text.
  lanes = high - (len(columns) > 3)
  width = 2 * _EDGE + len(columns) * _WIDE + (len(columns) - 1) * _GAP
  height = 2 * _EDGE + 24 + high * _HIGH + (high - 1) * 18
  places, parts = {}, []
  for i, column in enumerate(columns):
    rows = high if i == 0 or len(columns) <= 3 else lanes
    top = _EDGE + 24 + (rows - len(column)) * (_HIGH + 18) / 2
    for j, (name, slot, lines) in enumerate(column):
      x, y = _EDGE + i * (_WIDE + _GAP), top + j * (_HIGH + 18)
      places[name] = (x, y)
      parts.append(_box(x, y, slot, lines))
  for start, end, label in links:
    parts.append(_link(places[start], places[end], label))
  style = 'font-family="Helvetica, Arial, sans-serif" font-size="13"'
  head = f'<text x="{_EDGE}" y="{_EDGE + 4}" font-weight="bold">{escape(title)}</text>'
  box = f'viewBox="0 0 {width} {height:g}" width="{width}" height="{height:g}"'
  white = f'<rect width="{width}" height="{height:g}" fill="white"/>'
  body = "\n".join((white, _ARROW, head, *parts))
  return f'<svg xmlns="http://www.w3.org/2000/svg" {box} {style}>\n{body}\n</svg>\n'


def _boxes(model: Mapping[str, Any]) -> tuple[list[list[tuple]], list[tuple]]:
  """Columns of (name, slot, lines), and (from, to, label) between them."""
  encoders = dict(model.get("encoders") or {}) if model["kind"] != "lm" else {}
  inputs = [("text", "input", ("text", "token ids"))]
  towers, links = [], []
  for name, e in encoders.items():
    media = "video" if name == "video" else "pictures"
    inputs.insert(len(towers), (f"in {name}", "input", (media, _pixels(e))))
    towers.append((name, "encoder", (f"{name}: {e['kind']}", *_tower(e))))
    links.append((f"in {name}", name, ""))
  if model["kind"] == "encoder":
    inputs.pop()
    return [inputs, towers, [("out", "output", ("features",))]], [
      *links,
      *((n, "out", "") for n in encoders),
    ]
  if model["kind"] == "two_tower":
    text = model.get("text", {})
    towers.append(("text tower", "decoder", ("text tower", *_tower(text))))
    links += [("text", "text tower", ""), ("text tower", "out", "")]
    out = [("out", "output", ("similarities", "t * image . text + b"))]
    return [inputs, towers, out], [*links, *((n, "out", "") for n in encoders)]
  columns = [inputs]
  decoder = model.get("decoder", {})
  if encoders:
    c = model.get("connector", {"kind": "linear"})
    facts = [f"{k} {c[k]}" for k in ("queries", "latents", "scale", "kernel", "merge") if c.get(k)]
    columns += [towers, [("connector", "connector", (f"connector: {c['kind']}", *facts[:1]))]]
    links += [(n, "connector", "") for n in encoders]
  if model["kind"] == "matching":
    links += [("text", "connector", ""), ("connector", "out", "")]
    return [*columns, [("out", "output", ("matching logits", "similarities"))]], links
  crossed = model.get("fusion", {}).get("kind") == "memory"
  whole = "encoder and decoder" if decoder["kind"] == "encdec" else "decoder"
  columns.append([("decoder", "decoder", (whole, *_tower(decoder)))])
  columns.append([("out", "output", ("logits", "at the read positions"))])
  if encoders:
    links.append(("connector", "decoder", "memory" if crossed else "rows"))
  return columns, [*links, ("text", "decoder", ""), ("decoder", "out", "")]


def _pixels(e: Mapping[str, Any]) -> str:
  patch = e.get("patch") or str(e.get("variant", "")).partition("/")[2]
  return f"patches of {patch}" if patch else "pixels"


def _tower(e: Mapping[str, Any]) -> tuple[str, ...]:
  if e.get("variant"):
    return (str(e["variant"]),)
  return (f"{e['depth']} layers of {e['width']}",) if e.get("depth") else ()


def _box(x: float, y: float, slot: str, lines: tuple[str, ...]) -> str:
  fill = _COLOURS[slot]
  out = [
    f'<rect x="{x:g}" y="{y:g}" width="{_WIDE}" height="{_HIGH}" rx="8" fill="{fill}" '
    'stroke="#374151"/>'
  ]
  first = y + _HIGH / 2 + 5 - 9 * (len(lines) - 1)
  for n, line in enumerate(lines):
    weight = ' font-weight="bold"' if n == 0 else ' fill="#4b5563"'
    at = f'x="{x + _WIDE / 2:g}" y="{first + 18 * n:g}"'
    out.append(f'<text {at} text-anchor="middle"{weight}>{escape(line)}</text>')
  return "\n".join(out)


def _link(start: tuple[float, float], end: tuple[float, float], label: str) -> str:
  """An arrow from the right of a box to the left of another."""
  x0, y0 = start[0] + _WIDE, start[1] + _HIGH / 2
  x1, y1 = end[0] - 2, end[1] + _HIGH / 2
  if x1 - x0 > _WIDE:  # Past other boxes: along the lane of the text, and up.
    under = end[0] + _WIDE / 2
    path = f"M{x0:g} {y0:g} H{under:g} V{end[1] + _HIGH + 2:g}"
    return (
      f'<path d="{path}" fill="none" stroke="#374151" stroke-width="1.5" marker-end="url(#a)"/>'
    )
  bend = min(_GAP, (x1 - x0) / 2)
  path = f"M{x0:g} {y0:g} C{x0 + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1:g} {y1:g}"
  out = f'<path d="{path}" fill="none" stroke="#374151" stroke-width="1.5" marker-end="url(#a)"/>'
  if label:
    at = f'x="{(x0 + x1) / 2:g}" y="{(y0 + y1) / 2 - 7:g}"'
    out += f'\n<text {at} text-anchor="middle" font-size="11" fill="#4b5563">{label}</text>'
  return out
