"""Asks a trained model about a picture, and draws the boxes and masks of its answer."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from bigvlm.evaluators import segmentation
from bigvlm.processing import boxes, image, masks
from bigvlm.utils import draw, log

_SIDE = 768  # longer side of the drawn picture


def predict(
  workdir: str | pathlib.Path,
  image_path: str | pathlib.Path,
  prompt: str,
  out: str | pathlib.Path | None = None,
  *,
  stage: str | None = None,
  max_new_tokens: int = 64,
  model=None,
  codec: str | pathlib.Path | None = None,
) -> str:
  """Asks the model of a run about one picture and prints its answer.

  Boxes and masks of the answer are drawn into `out`; without `out`, into NAME.answer.png beside
  the picture, and only when the answer has any.

  Args:
    workdir: the folder of a run, or the name of the checkpoint that `model` is.
    image_path: the picture.
    prompt: the question.
    out: the PNG to write; never the picture itself.
    stage: whose model; None = the last finished stage.
    max_new_tokens: most tokens of the answer.
    model: an `api.Model` to use instead of loading the workdir's (for several pictures).
    codec: the file that decodes masks; None = the one that the run's config names.

  Returns:
    The answer.

  Raises:
    ValueError: an empty prompt, a file that is no picture (with its name), `out` is the picture.
  """
  image_path = pathlib.Path(image_path)
  if not prompt.strip():
    raise ValueError('the prompt is empty; ask something, as in --prompt "detect 7"')
  try:
    pixels = image.decode(image_path)
  except image.BadExample as e:
    named = str(image_path) in e.reason
    raise ValueError(e.reason if named else f"image '{image_path}': {e.reason}") from None
  target = pathlib.Path(out) if out else image_path.with_name(f"{image_path.stem}.answer.png")
  if target.resolve() == image_path.resolve() or _same_file(target, image_path):
    raise ValueError(
      f"'{target}' is the picture itself, which is never overwritten; choose another"
    )
  if out and not target.parent.is_dir():
    raise ValueError(f"'{target.parent}' is no folder; --out cannot be written there")
  if model is None:
    from bigvlm.trainers import evaluate

    model = evaluate.load(workdir, stage)
  answer = model.generate([pixels], [prompt], max_new_tokens=max_new_tokens, batch_size=1)[0]
  print(answer)
  decoder = pathlib.Path(codec) if codec else codec_of(pathlib.Path(workdir))
  picture = drawn(pixels, answer, decoder)
  if picture is not None or out:
    (picture or draw.annotate(pixels, side=_SIDE)).save(target, "png")
    log.line(f"drawn: {target}")
  return answer


def codec_of(workdir: pathlib.Path) -> pathlib.Path | None:
  """The mask codec that the config of a run names (for data, evaluators, to be made), or None."""
  path = workdir / "config.json"
  config = json.loads(path.read_text()) if path.exists() else {}
  named = next(_codecs(config), None)
  made = config.get("prepare", {}).get("codec")
  if named is None and made is not None:
    named = f"workdir:{made.get('path', 'mask_codec.npz')}"
  if named is None:
    return None
  inside = named.removeprefix("workdir:")
  return workdir / inside if inside != named else pathlib.Path(named)


def _codecs(value: Any) -> Iterator[str]:
  """All strings that stand under the name `codec`, at any depth."""
  if isinstance(value, dict):
    if value.get("codec") and isinstance(value["codec"], str):
      yield value["codec"]
    value = list(value.values())
  if isinstance(value, list):
    for item in value:
      yield from _codecs(item)


def drawn(pixels: np.ndarray, answer: str, codec: pathlib.Path | None):
  """The picture (uint8 [H, W, 3]) with the answer's boxes and first mask; None if it has none."""
  found = [one for one in boxes.parse(answer) if one.valid]
  if not found:
    return None
  mask = None
  if found[0].codes is not None and codec is not None and codec.exists():
    mask = segmentation.first_mask(masks.load(str(codec)), answer, *pixels.shape[:2])
  elif found[0].codes is not None:
    where = f"'{codec}' is not there" if codec else "the config names no codec (see --codec)"
    log.warn(f"the answer has a mask, but {where} to decode it; only its box is drawn")
  return draw.annotate(pixels, [(one.box, one.name) for one in found], mask, side=_SIDE)


def _same_file(a: pathlib.Path, b: pathlib.Path) -> bool:
  """Whether both names lead to one file (a hard link, or another spelling)."""
  return a.exists() and b.exists() and os.path.samefile(a, b)
