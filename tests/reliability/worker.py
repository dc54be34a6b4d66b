"""One training process of a reliability trial, told by a JSON file what to do.

    python worker.py SPEC.json PROCESS

Keys of the spec: `config` (path of a config file, with argument), `workdir`, `log` (folder
for what the process saw), `flags` (overrides), `processes`, `port`, `stages`,
`sleep` (seconds a step), `nan` (positions of batches whose pixels get a NaN), `forget` (what a
restore loses: rng, data, count, step). Results go to files: gloo writes to stdout.
"""

import json
import pathlib
import sys
import time
import types


def main(spec_path: str, process: int) -> int:
  spec = json.loads(pathlib.Path(spec_path).read_text())
  from bigvlm import config as config_lib
  from bigvlm.trainers import launch, train

  argv = [spec["config"], f"--workdir={spec['workdir']}", *spec.get("flags", ())]
  config, workdir, stages = config_lib.parse_argv(argv)
  if spec.get("processes", 1) > 1:
    launch.initialize(f"localhost:{spec['port']}", spec["processes"], process)
  log = pathlib.Path(spec["log"])
  log.mkdir(parents=True, exist_ok=True)
  watch(log / f"batches-{process}.jsonl", spec)
  if spec.get("forget"):
    forget(spec["forget"])
  try:
    train.run(config, workdir, stages=stages)
    left = None
  except launch.Preempted as e:
    left = dict(stage=e.stage, step=e.step)
  except launch.NonFiniteError as e:
    (log / f"error-{process}.txt").write_text(str(e))
    return e.exit_code
  (log / f"left-{process}.json").write_text(json.dumps(left))
  return 0


def watch(path: pathlib.Path, spec: dict) -> None:
  """Notes the example ids of every batch that a step gets, and does what the spec wants there."""
  from bigvlm.trainers import feed, loop

  file = open(path, "a")
  plain_next, plain_loader = feed.Feed.__next__, loop.loader_lib.train_loader

  def next_(self):
    fed = plain_next(self)
    file.write(json.dumps([fed.position, fed.ids.tolist()]) + "\n")
    file.flush()
    time.sleep(spec.get("sleep", 0))
    return fed

  feed.Feed.__next__ = next_
  if spec.get("nan") is not None:

    def loader(*args, **kwargs):
      return Poisoned(plain_loader(*args, **kwargs), spec["nan"])

    loop.loader_lib = types.SimpleNamespace(train_loader=loader)


class Poisoned:
  """A loader of normalised float pixels, one of which is NaN in the batches at some positions."""

  def __init__(self, loader, positions):
    self._loader, self._positions = loader, positions
    self.state, self.restore, self.close = loader.state, loader.restore, loader.close

  def __next__(self):
    arrays = dict(next(self._loader))
    arrays["image"] = arrays["image"].astype("float32") / 127.5 - 1
    if self.state()["step"] in self._positions:
      arrays["image"][0, 0, 0, 0, 0] = float("nan")
    return arrays


def forget(what: str) -> None:
  """Breaks the restore: what a resume that forgot this would be like."""
  import jax.numpy as jnp

  from bigvlm.ckpt import native

  plain = native.Checkpointer.restore

  def restore(self, like, step=None, **kwargs):
    state, meta = plain(self, like, step, **kwargs)
    if what == "rng":
      state = state.replace(rng=like_(state.rng, jnp.ones_like(state.rng)))
    elif what == "count":
      state = state.replace(opt={**state.opt, "count": like_(state.opt["count"], 0)})
    elif what == "step":
      state = state.replace(step=like_(state.step, 0))
    else:
      meta = {k: v for k, v in meta.items() if k != "data"}
    return state, meta

  def like_(x, value):
    import jax

    return jax.device_put(jnp.full_like(x, value), x.sharding)

  native.Checkpointer.restore = restore


if __name__ == "__main__":
  sys.exit(main(sys.argv[1], int(sys.argv[2])))
