"""Compares bigvlm's processor of a directory with recorded outputs. Needs no reference."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from bigvlm.processing import video
from bigvlm.processing.hub import processors

NEW = 7  # Tokens of an answer, at most.
PIXELS = 1e-6  # Both sides resize with the same Pillow, or with the same fixed-point filters.
_PIXELS = (
  "pixel_values", "pixel_values_images", "pixel_values_videos", "high_res_pixel_values",
  "image_patches",
)  # fmt: skip


def check(
  folder: pathlib.Path,
  cases: Sequence[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]],
  pictures: Mapping[str, Image.Image],
  videos: Mapping[str, np.ndarray] | None = None,
) -> list[str]:
  """What differs, one line each."""
  processor = processors.make(folder)
  wrong = []
  for n, (call, expected) in enumerate(cases):
    given = {k: v for k, v in call.items() if k != "return_tensors"}
    if "images" in given:
      films = processor.images is None
      given["images"] = filled(given["images"], videos if films else pictures)
    if "videos" in given:
      given["videos"] = filled(given["videos"], videos)
    found = processor.images(**given) if processor.tokenizer is None else processor(**given)
    if set(found) != set(expected):
      wrong.append(f"case {n}: {sorted(found)} for {sorted(expected)}")
    for key in set(found) & set(expected):
      a, b = found[key], expected[key]
      if a.shape != b.shape:
        wrong.append(f"case {n}: {key} is {a.shape}, not {b.shape}")
      elif key in _PIXELS:
        if np.abs(a - b).max() > PIXELS:
          wrong.append(f"case {n}: {key} differs by {np.abs(a - b).max():.2e}")
      elif not np.array_equal(a, b):
        row = int(np.argwhere((a != b).reshape(len(a), -1).any(axis=1))[0, 0])
        wrong.append(f"case {n}: {key}[{row}] is {a[row].tolist()}, not {b[row].tolist()}")
  return wrong


def check_texts(
  folder: pathlib.Path,
  decoded: Sequence[tuple[Sequence[int], str, str]],
  chats: Sequence[tuple[Mapping[str, Any], str]],
) -> list[str]:
  """What differs of decoded ids and of rendered conversations."""
  processor = processors.make(folder)
  wrong = []
  for ids, plain, full in decoded:
    for text, skip in ((plain, True), (full, False)):
      found = processor.decode(ids, skip_special_tokens=skip)
      if found != text:
        wrong.append(f"decode({list(ids)}, {skip}) is {found!r}, not {text!r}")
  for call, text in chats:
    found = processor.chat(**call)
    if found != text:
      wrong.append(f"the conversation is {found!r}, not {text!r}")
  return wrong


def check_human(
  folder: pathlib.Path,
  expected: Mapping[str, tuple[Sequence[Any], Any]],
  pictures: Mapping[str, Image.Image],
  videos: Mapping[str, np.ndarray] | None = None,
) -> list[str]:
  """What differs of the calls for people: {call: (arguments, result)}."""
  import bigvlm

  model = bigvlm.load(folder)
  pictures = {k: video.read(v) for k, v in (videos or {}).items()} | dict(pictures)
  wrong = []
  for call, (given, want) in expected.items():
    if call != "embed_text" and given[0] is not None:
      given = (filled(given[0], pictures), *given[1:])
    more = dict(max_new_tokens=NEW) if call == "generate" else {}
    found = getattr(model, call)(*given, batch_size=2, **more)
    if call == "generate":
      if found != list(want):
        wrong.append(f"generate: {found} for {want}")
      continue
    want = np.asarray(want)
    if found.shape != want.shape or np.abs(found - want).max() > 1e-5 * np.abs(want).max():
      wrong.append(f"{call}: {found.tolist()} for {want.tolist()}")
  return wrong


def filled(x: Any, pictures: Mapping[str, Image.Image]) -> Any:
  """Names, in lists or not, as the pictures they name."""
  return pictures[x] if isinstance(x, str) else [filled(one, pictures) for one in x]
