"""How orbax is set up: raw array files, and a manifest that is part of the commit."""

import functools
import logging
import pathlib
from typing import Any

import numpy as np

from bigvlm.ckpt import digests, staging

STATE = "state"  # The two folders in a checkpoint.
MANIFEST = "manifest"


@functools.cache
def manifest_classes() -> tuple[type, type]:
  """The orbax handler that writes the manifest, and its arguments.

  They are made on first use because orbax takes a second to import. Each process
  hashes what it owns while orbax writes the arrays; when all have finished, and before
  the checkpoint gets its name, process 0 merges what they wrote.
  """
  import orbax.checkpoint as ocp
  from orbax.checkpoint import future

  class ManifestHandler(ocp.AsyncCheckpointHandler):
    """Hashes in a commit future of its own; merges when orbax finalizes."""

    def __init__(self, process: int, processes: int):
      self._process, self._processes = process, processes
      self._args: Any = None

    async def async_save(self, directory, args):
      self._args = args
      tensors = {name: (x.shape, x.dtype, own) for name, (x, own) in args.staged.items()}

      async def write():
        digests.write_process(directory, self._process, tensors)

      return [future.CommitFutureAwaitingContractedSignals(write(), name="digests")]

    def save(self, directory, args):
      raise NotImplementedError("the manifest is written by async_save")

    def restore(self, directory, args=None):
      return digests.read(directory / digests.MANIFEST)

    def finalize(self, directory):
      args, self._args = self._args, None
      specs = {name: (x.shape, np.dtype(x.dtype)) for name, (x, _) in args.staged.items()}
      digests.merge(directory, self._processes, specs, args.step, args.meta)

  class ManifestArgs(ocp.args.CheckpointArgs):
    """What `ManifestHandler` saves: the staged state, its step and the caller's meta."""

    def __init__(self, staged: staging.Staged, step: int, meta: dict):
      self.staged, self.step, self.meta = staged, step, meta

  ocp.args.register_with_handler(ManifestHandler, for_save=True, for_restore=True)(ManifestArgs)
  return ManifestHandler, ManifestArgs


class _NotOrbax(logging.Filter):
  """Drops what orbax logs: a warning a save, and the traceback of an error that is raised too."""

  def filter(self, record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname or record.levelno >= logging.CRITICAL


_FILTER = _NotOrbax()


def checkpointer(process: int, processes: int, barrier: Any, timeout: int):
  """An `AsyncCheckpointer` for one state and its manifest.

  Arrays are zarr files of raw bytes, one a shard: without compression and without the
  key-value database orbax puts them in by default, saving is about 3 times and
  restoring about 2 times as fast, and each byte of a data file is a byte of a tensor,
  which is what lets the digests see any change. Barriers go through the coordination
  service, not through the devices, so they may run beside the training step.
  """
  import orbax.checkpoint as ocp

  logging.getLogger("absl").addFilter(_FILTER)
  several = ocp.options.MultiprocessingOptions(
    active_processes=set(range(processes)) if processes > 1 else None
  )
  waiting = ocp.options.AsyncOptions(timeout_secs=timeout, barrier_sync_fn=barrier)
  arrays = ocp.PyTreeCheckpointHandler(
    use_ocdbt=False, use_zarr3=False, use_compression=False, multiprocessing_options=several
  )
  manifest, _ = manifest_classes()
  both = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(multiprocessing_options=several, async_options=waiting),
    **{STATE: arrays, MANIFEST: manifest(process, processes)},
  )
  return ocp.AsyncCheckpointer(both, async_options=waiting, multiprocessing_options=several)


def restore_args(like: dict[str, Any], nested: dict):
  """Orbax's arguments that restore `nested`, a tree of names whose specs are in `like`."""
  import jax
  import orbax.checkpoint as ocp

  def one(name: str):
    spec = like[name]
    return ocp.ArrayRestoreArgs(
      restore_type=jax.Array, sharding=spec.sharding, global_shape=spec.shape, dtype=spec.dtype
    )

  return ocp.args.PyTreeRestore(
    item=jax.tree.map(lambda name: like[name], nested),
    restore_args=jax.tree.map(one, nested),
    partial_restore=True,
  )


def is_local(directory: Any) -> bool:
  """Whether `directory` is on a file system with atomic renames and locks (not gs://...)."""
  return "://" not in str(directory) or isinstance(directory, pathlib.Path)
