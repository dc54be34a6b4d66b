"""Pictures for people: answers drawn on images, grids of them, and curves."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GREEN = (22, 140, 62)
RED = (206, 43, 43)
GREY = (105, 105, 105)
INK = (25, 25, 25)
PAPER = (255, 255, 255)
# Apart from each other and from most backgrounds.
COLOURS = ((255, 196, 0), (0, 200, 255), (255, 80, 200), (120, 230, 60), (255, 120, 40))
_BOX = re.compile(r"(?:<loc\d{4}>){4}")
_MASK = re.compile(r"(?:<seg\d{3}>){16}")
_MARGIN = 10

Boxes = Sequence[tuple[Sequence[float], str]]


def font(size: int):
  """Pillow's own scalable font, so that pictures are the same on every machine."""
  return ImageFont.load_default(size=size)


def enlarge(image: np.ndarray, side: int) -> Image.Image:
  """uint8 [H, W, 3] as a picture whose longer side is near `side` and at most that.

  Small images grow by whole factors, so that their pixels stay square; large ones shrink.
  """
  picture = Image.fromarray(image)
  longest = max(picture.size)
  if longest > side:
    size = [max(1, round(length * side / longest)) for length in picture.size]
    return picture.resize(size, Image.Resampling.LANCZOS)
  factor = max(1, side // longest)
  return picture.resize([length * factor for length in picture.size], Image.Resampling.NEAREST)


def annotate(
  image: np.ndarray,
  boxes: Boxes = (),
  mask: np.ndarray | None = None,
  *,
  side: int = 512,
  colour: tuple[int, int, int] | None = None,
  target_boxes: Boxes = (),
  target_mask: np.ndarray | None = None,
) -> Image.Image:
  """Draws an answer on its image.

  Args:
    image: uint8 [H, W, 3].
    boxes: ((y0, x0, y1, x1) in [0, 1], label) pairs, framed with their labels.
    mask: bool [H, W], laid over the image and outlined.
    side: the longer side of the picture; small images are enlarged by whole factors.
    colour: of everything; by default every box has its own, and the mask that of the first box.
    target_boxes: drawn as thin white frames on black, below the others.
    target_mask: bool [H, W], drawn as a thin white outline.
  """
  picture = enlarge(image, side)
  if mask is not None and np.any(mask):
    picture = _lay_mask(picture, mask, colour or COLOURS[0], fill=0.5)
  if target_mask is not None and np.any(target_mask):
    picture = _lay_mask(picture, target_mask, PAPER, fill=0.0)
  pen = ImageDraw.Draw(picture)
  for box, _ in target_boxes:
    x0, y0, x1, y1 = _corners(box, picture.size)
    pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0), width=3)
    pen.rectangle((x0, y0, x1, y1), outline=(255, 255, 255), width=1)
  letters = font(max(12, round(max(picture.size) / 20)))
  taken = []
  for number, (box, label) in enumerate(boxes):
    shade = colour or COLOURS[number % len(COLOURS)]
    corners = _corners(box, picture.size)
    pen.rectangle(corners, outline=shade, width=max(2, max(picture.size) // 128))
    if label:
      taken.append(_label(pen, label, corners, picture.size, letters, shade, taken))
  return picture


def _corners(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
  """x0, y0, x1, y1 of the outermost pixels of a box, within the picture."""
  width, height = size
  y0, x0, y1, x1 = np.clip(box, 0, 1)
  left, top = min(round(x0 * width), width - 1), min(round(y0 * height), height - 1)
  right, bottom = max(round(x1 * width) - 1, left), max(round(y1 * height) - 1, top)
  return left, top, right, bottom


def _lay_mask(picture: Image.Image, mask: np.ndarray, colour, fill: float) -> Image.Image:
  """Shades a mask, and outlines it in its colour with black around."""
  grown = Image.fromarray(np.asarray(mask, np.uint8) * 255)
  inside = np.asarray(grown.resize(picture.size, Image.Resampling.NEAREST)) > 0
  shaded = np.asarray(picture, np.float32).copy()
  shaded[inside] += fill * (np.asarray(colour, np.float32) - shaded[inside])
  padded = np.pad(inside, 1)
  near = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
  shaded[inside & ~np.logical_and.reduce(near)] = colour
  shaded[~inside & np.logical_or.reduce(near)] = 0
  return Image.fromarray((shaded + 0.5).astype(np.uint8))


def _label(pen, label: str, corners, size, letters, shade, taken) -> tuple[int, int, int, int]:
  """Writes a label on a patch of colour: above the box, or where there is room beside it."""
  left, top, right, bottom = corners
  width = round(pen.textlength(label, font=letters)) + 6
  height = round(letters.size * 1.15) + 2
  x = max(0, min(left, size[0] - width))
  places = [
    (x, top - height),
    (x, bottom + 1),
    (right + 1, top),
    (left - width, top),
    (x, max(0, min(top, size[1] - height))),
  ]
  for px, py in places:
    patch = (px, py, px + width, py + height)
    outside = px < 0 or py < 0 or patch[2] > size[0] or patch[3] > size[1]
    if not outside and not any(_touch(patch, other) for other in taken):
      break
  pen.rectangle((patch[0], patch[1], patch[2] - 1, patch[3] - 1), fill=shade)
  dark = sum(shade) / 3 > 120
  where = ((patch[0] + patch[2]) / 2, (patch[1] + patch[3]) / 2)
  pen.text(where, label, fill=(0, 0, 0) if dark else PAPER, font=letters, anchor="mm")
  return patch


def _touch(a, b) -> bool:
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def readable(text: str) -> str:
  """An answer for people: location and mask tokens become [box] and [mask]."""
  return " ".join(_MASK.sub(" [mask] ", _BOX.sub(" [box] ", text)).split())


def wrap(text: str, letters, width: float, lines: int) -> list[str]:
  """Breaks text into at most `lines` lines of at most `width` pixels; `...` where it is cut."""
  out, rest = [], text.strip()
  while rest and len(out) < lines:
    fits = len(rest)
    while fits > 1 and letters.getlength(rest[:fits]) > width:
      fits -= 1
    if fits < len(rest):
      space = rest.rfind(" ", 1, fits + 1)
      fits = space if space > 0 else fits
    out.append(rest[:fits].rstrip())
    rest = rest[fits:].lstrip()
  if rest:
    last = out[-1]
    while last and letters.getlength(last + "...") > width:
      last = last[:-1]
    out[-1] = last.rstrip() + "..."
  return out


def cell(record: Mapping, side: int = 256) -> Image.Image:
  """One prediction: the picture with the answer drawn, the question, the answer, the verdict.

  `record` is what `Evaluator.predictions` gives, with `title` (small, at the top) if wanted. A
  right one has a green frame and a tick; a wrong one a red frame, a cross, and the target below
  (target boxes and masks in thin white).
  """
  right = record["right"]
  shade = GREEN if right else RED
  picture = annotate(
    record["image"],
    record["boxes"],
    record["mask"],
    side=side,
    target_boxes=() if right else record["target_boxes"],
    target_mask=None if right else record["target_mask"],
  )
  plain, small = font(16), font(13)
  lines = [(small, GREY, part) for part in wrap(record.get("title", ""), small, side, 1)]
  above = sum(round(letters.size * 1.35) for letters, _, _ in lines)
  rows = [(plain, INK, part) for part in wrap(record["prompt"], plain, side, 3)]
  answer = readable(record["answer"]) or "(no answer)"
  rows += [(plain, shade, part) for part in wrap(answer, plain, side - 22, 3)]
  first_answer = len(rows) - len(wrap(answer, plain, side - 22, 3))
  if not right:
    target = readable(record["target"])
    rows += [(small, GREY, part) for part in wrap(f"target: {target}", small, side, 2)]
  below = sum(round(letters.size * 1.35) for letters, _, _ in rows)
  height = above + side + 14 + below + 2 * _MARGIN
  out = Image.new("RGB", (side + 2 * _MARGIN, height), PAPER)
  pen = ImageDraw.Draw(out)
  y = _MARGIN
  for letters, ink, part in lines:
    pen.text((_MARGIN, y), part, fill=ink, font=letters)
    y += round(letters.size * 1.35)
  y += 6
  corner = (_MARGIN + (side - picture.width) // 2, y + (side - picture.height) // 2)
  out.paste(picture, corner)
  frame = (corner[0] - 4, corner[1] - 4, corner[0] + picture.width + 3)
  pen.rectangle((*frame, corner[1] + picture.height + 3), outline=shade, width=4)
  y += side + 8
  for number, (letters, ink, part) in enumerate(rows):
    indent = 22 if ink == shade else 0
    if number == first_answer:
      _verdict(pen, _MARGIN, y + 2, right)
    pen.text((_MARGIN + indent, y), part, fill=ink, font=letters)
    y += round(letters.size * 1.35)
  return out


def _verdict(pen, x: int, y: int, right: bool) -> None:
  """A tick or a cross of 15 x 15 pixels (drawn, because the font has neither)."""
  if right:
    pen.line([(x + 1, y + 8), (x + 6, y + 13), (x + 15, y + 2)], fill=GREEN, width=3)
  else:
    pen.line([(x + 2, y + 2), (x + 14, y + 14)], fill=RED, width=3)
    pen.line([(x + 14, y + 2), (x + 2, y + 14)], fill=RED, width=3)


def grid(records: Sequence[Mapping], columns: int = 4, side: int = 256) -> Image.Image:
  """All `cell`s of the records, row by row; raises a ValueError when there are none."""
  if not records:
    raise ValueError("there are no predictions to draw")
  cells = [cell(record, side) for record in records]
  columns = min(columns, len(cells))
  rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
  heights = [max(one.height for one in row) for row in rows]
  width = cells[0].width
  out = Image.new("RGB", (width * columns, sum(heights)), PAPER)
  y = 0
  for row, height in zip(rows, heights, strict=True):
    for number, one in enumerate(row):
      out.paste(one, (number * width, y))
    y += height
  return out


def curves(rows: Sequence[Sequence[Mapping]], path: str) -> None:
  """Writes a PNG of plots.

  Args:
    rows: rows of panels. A panel is dict(title=, series={name: (x, y)}), with `x_label`, `limits`
      (of y), `ticks` (names for x = 0, 1, ..) where wanted. Panels share the width of their row.
    path: the file.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(12, 3.4 * len(rows)), dpi=100, layout="constrained")
  FigureCanvasAgg(figure)
  for part, panels in zip(figure.subfigures(len(rows), squeeze=False)[:, 0], rows, strict=True):
    for axis, panel in zip(part.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
      _panel(axis, panel)
  figure.savefig(path, metadata={"Software": None})


def _panel(axis, panel: Mapping) -> None:
  for name, (x, y) in panel["series"].items():
    marker = "o" if len(x) < 30 else None
    axis.plot(x, y, label=name, marker=marker, markersize=4, linewidth=1.4)
  axis.set_title(panel["title"], fontsize=11)
  axis.set_xlabel(panel.get("x_label", ""), fontsize=9)
  axis.grid(alpha=0.3)
  axis.tick_params(labelsize=8)
  if "limits" in panel:
    axis.set_ylim(*panel["limits"])
  if "ticks" in panel:
    axis.set_xticks(range(len(panel["ticks"])), panel["ticks"])
    first = min((at for x, _ in panel["series"].values() for at in x), default=0)
    axis.set_xlim(min(first, 0) - 0.2, len(panel["ticks"]) - 0.8)
  if len(panel["series"]) > 1 or "ticks" in panel:
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
