"""What stages need and nobody ships: a tokenizer trained on the run's own text, a mask codec, toy
checkpoints for a smoke run.

Each is made once, before the first stage, the same bytes every time, and appears in the
workdir whole or not at all. Configs refer to it as "workdir:FILE".

    prepare=dict(
      codec=dict(config="mask_codec:tiny", path="mask_codec.npz"),
      tokenizer=dict(
        data=dict(sources=(...)), examples=2000, fields=("prefix", "suffix", "text"),
        path="tokenizer.model", vocab_size=512, model_type="unigram", symbols=(),
      ),
      toys=dict(toy="llava"),  # Path and name of each.
    )
"""

import json
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

from bigvlm import config as config_lib
from bigvlm.trainers import launch, metrics
from bigvlm.utils import log, names

_FIELDS = dict(
  codec=dict(config="mask_codec", path="mask_codec.npz"),
  tokenizer=dict(
    data=None,
    examples=2000,
    fields=("prefix", "suffix", "text"),
    path="tokenizer.model",
    vocab_size=512,
    model_type="unigram",
    symbols=(),
  ),
  toys=dict(),
)


def run(config: Any, workdir: pathlib.Path) -> None:
  """Makes what `config.prepare` names and the workdir lacks.

  Raises:
    ValueError: an unknown field.
  """
  given = config_lib.plain(config.prepare)
  for what, cfg in given.items():
    if what not in _FIELDS:
      raise ValueError(names.unknown("field of prepare", what, _FIELDS))
    for key in cfg:
      if what != "toys" and key not in _FIELDS[what]:
        raise ValueError(names.unknown(f"field of prepare.{what}", key, _FIELDS[what]))
  wanted = [
    (what, make, {**_FIELDS[what], **given[what]})
    for what, make in dict(codec=_codec, tokenizer=_tokenizer).items()  # Whose text may need it.
    if what in given
  ]
  toys = given.get("toys", {}).items()
  wanted += [(path, _toy, dict(path=path, name=name)) for path, name in toys]
  for what, make, cfg in wanted:
    missing = not (workdir / cfg["path"]).exists()
    launch.barrier(f"prepare {what}")  # All have looked before one writes.
    if missing:
      _note(workdir, what, make(config, cfg, workdir))
    launch.barrier(f"prepared {what}")


def seconds(workdir: pathlib.Path) -> float:
  """Seconds that all of it took."""
  return sum(_times(workdir).values())


def _times(workdir: pathlib.Path) -> dict[str, float]:
  path = workdir / "prepare.json"
  return json.loads(path.read_text()) if path.exists() else {}


def _note(workdir: pathlib.Path, what: str, took: float) -> None:
  if jax.process_index() == 0:
    times = {**_times(workdir), what: round(took, 3)}
    metrics.write_atomic(workdir / "prepare.json", json.dumps(times) + "\n")


def _tokenizer(config: Any, cfg: dict, workdir: pathlib.Path) -> float:
  """Trains a sentencepiece model on the first examples of a mixture, weights respected."""
  began = time.monotonic()
  if jax.process_index() == 0:
    from bigvlm.data import mixture
    from bigvlm.processing import tokenizer

    if cfg["data"] is None:
      raise ValueError("prepare.tokenizer.data is not set: the mixture whose text it learns from")
    mixed, texts = mixture.make(cfg["data"], str(workdir)), []
    for k in range(cfg["examples"]):
      number, draw = mixture.locate(k, mixed.parts)
      source = mixed.sources[number]
      example = mixed.chains[number](source[draw % len(source)], np.random.default_rng(k))
      texts += [example[field] for field in cfg["fields"] if example.get(field)]
    made = tokenizer.train(
      texts,
      workdir / cfg["path"],
      cfg["vocab_size"],
      model_type=cfg["model_type"],
      symbols=cfg["symbols"],
    )
    log.line(f"prepared {workdir / cfg['path']}: {made.vocab_size} pieces of {len(texts)} texts")
  return time.monotonic() - began


def _codec(config: Any, cfg: dict, workdir: pathlib.Path) -> float:
  """Trains the mask codec by its own config, with the same trainer, in a folder of its own."""
  from bigvlm.models import mask_codec
  from bigvlm.trainers import evaluate, train

  folder = workdir / "codec"
  codec = config_lib.load(cfg["config"])
  codec.seed = config.seed
  took = train.run(codec, folder, summary=False)["seconds"]
  params = evaluate.load(folder).params
  if jax.process_index() == 0:
    arrays = mask_codec.to_published(jax.device_get(params))
    path = workdir / cfg["path"]
    part = path.with_name(f"{path.stem}.{os.getpid()}.part.npz")
    np.savez(part, **arrays)
    os.replace(part, path)
    log.line(f"prepared {path}")
  return took


def _toy(config: Any, cfg: dict, workdir: pathlib.Path) -> float:
  """Writes a toy checkpoint of others (see `hub.toys`)."""
  began = time.monotonic()
  if jax.process_index() == 0:
    from bigvlm.hub import toys

    path = workdir / cfg["path"]
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    toys.write(cfg["name"], part)
    os.replace(part, path)
    log.line(f"prepared {path}: a toy {cfg['name']}")
  return time.monotonic() - began
