"""Input pipeline: 500 x 375 JPEG files to 224 x 224 uint8, images a second on one core.

    python -m benchmarks.input_pipeline [--tiny]

Rounds of all contestants take turns, in one process pinned to one core, so that a busy machine
slows all of them; the best of the rounds counts. "grain+cv2" is the peer: a plain grain pipeline
that calls cv2.imdecode and cv2.resize, once sampling (INTER_LINEAR, which aliases) and once
averaging (INTER_AREA, which does not); each is to be compared with our row of the same quality.
"""

import argparse
import io
import os
import time
from collections.abc import Callable, Iterator

import cv2
import grain
import numpy as np
from PIL import Image

from benchmarks import common
from bigvlm.data import loader, mixture
from bigvlm.processing import pixels, processor
from bigvlm.processing.image import BadExample

HEIGHT, WIDTH, SIZE = 375, 500, 224


def pictures(count: int) -> list[bytes]:
  """JPEG files of quality 90 with the spectrum of photographs (about 60 KB each)."""
  out = []
  for seed in range(count):
    rng = np.random.default_rng(seed)
    image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for cells in (3, 12, 48, 192):
      noise = rng.uniform(0, 255, (cells * 3 // 4 + 1, cells, 3)).astype(np.uint8)
      image += np.asarray(Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.BICUBIC)) / cells
    image = image * (235 / image.max()) + rng.normal(10, 9, image.shape)
    file = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    out.append(file.getvalue())
  return out


class Pixels(processor.Processor):
  """A processor of pixels alone, so that all contestants do the same work."""

  def __init__(self, **options):
    self._pixels = pixels.Pixels(SIZE, **options)

  def row(self, example, rng):
    return {"image": self._pixels(example["image"], str(example["id"]))}, False

  def blank(self):
    raise BadExample("no file of the benchmark is bad")


class Files:
  """The same few files again and again under a million indices, as a source for both sides.

  grain's shuffle takes 0.5 ms a draw for 64 records and next to nothing for a million.
  """

  name = "files"

  def __init__(self, files: list[bytes], wrap: bool):
    self._files, self._wrap = files, wrap

  def __len__(self) -> int:
    return 1_000_000

  def __getitem__(self, i: int):
    file = self._files[i % len(self._files)]
    return dict(id="", image=file) if self._wrap else file

  def __repr__(self) -> str:
    return "Files()"


def ours(files: list[bytes], batch: int, **options) -> Iterator:
  """Our loader: sources, mixing, decoding, ids, batches."""
  return loader.train_loader(
    mixture.Mixture([Files(files, True)]), Pixels(**options), batch_size=batch, seed=0, threads=0
  )


def peer(files: list[bytes], batch: int, interpolation: int) -> Iterator:
  """Plain grain and OpenCV."""

  def convert(file: bytes) -> dict:
    image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return {"image": cv2.resize(image, (SIZE, SIZE), interpolation=interpolation)}

  data = (
    grain.MapDataset.source(Files(files, False))
    .seed(0)
    .shuffle()
    .repeat(None)
    .map(convert)
    .batch(batch)
  )
  return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def contestants(files: list[bytes], batch: int) -> dict[str, Callable[[], Iterator]]:
  """Name -> a pipeline."""
  return {
    "ours pil": lambda: ours(files, batch),
    "ours opencv": lambda: ours(files, batch, backend="opencv"),
    "ours opencv, no antialias": lambda: ours(files, batch, backend="opencv", antialias=False),
    "grain+cv2 area": lambda: peer(files, batch, cv2.INTER_AREA),
    "grain+cv2 linear": lambda: peer(files, batch, cv2.INTER_LINEAR),
  }


def measure(batches: Iterator, batch: int, steps: int) -> float:
  """Images a second of CPU time of this process, over `steps` batches."""
  begin = time.process_time()
  for _ in range(steps):
    out = next(batches)["image"]
  seconds = time.process_time() - begin
  assert out.shape[-3:] == (SIZE, SIZE, 3) and out.dtype == np.uint8
  return steps * batch / seconds


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--tiny", action="store_true", help="a few images, to see that it runs")
  tiny = parser.parse_args().tiny
  cv2.setNumThreads(0)
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  batch, steps, rounds = (4, 1, 1) if tiny else (32, 4, 7)
  files = pictures(4 if tiny else 64)
  running = {name: make() for name, make in contestants(files, batch).items()}
  for batches in running.values():
    next(batches)
  rates = {name: [] for name in running}
  for _ in range(rounds):
    for name, batches in running.items():
      rates[name].append(measure(batches, batch, steps))
  best = {name: max(found) for name, found in rates.items()}
  against = {"ours opencv": "grain+cv2 area", "ours opencv, no antialias": "grain+cv2 linear"}
  for name, rate in best.items():
    fields = dict(seconds=1 / rate, images_per_second_per_core=rate)
    if name in against:
      fields.update(peer=against[name], ratio=rate / best[against[name]], must=1.0)
    common.emit(f"input_pipeline {name}", **fields)


if __name__ == "__main__":
  main()
