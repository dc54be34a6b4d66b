"""Checkpoints of a run: saved in the background, committed atomically, verified on restore.

Orbax does the sharded array IO, the asynchronous writing and the atomic commit. Added
here: a copy into memory that is kept, so that `save` blocks for one memcpy only; a
manifest of digests in every checkpoint; strict names, shapes and dtypes; errors of
the background save by the name of their step, in every process.

A checkpoint is the folder DIRECTORY/STEP with `state/` (arrays) and
`manifest/manifest.json` (meta, shapes, dtypes, digests). It is complete when it has
that name; until then it is a temporary folder, which the next start removes.
"""

import contextlib
import itertools
import json
import math
import threading
from concurrent import futures
from typing import Any

import jax
import numpy as np

from bigvlm.ckpt import agreement, checks, digests, handler, staging
from bigvlm.utils import log, tree
from bigvlm.utils import names as names_lib

CheckpointError = agreement.CheckpointError
VERIFY = {"off": 0.0, "sample": 1 / 8, "full": 1.0}
_TIMEOUT = 600  # seconds that processes wait for each other in a save
_TMP = ".orbax-checkpoint-tmp"
_REPLACED = ".replaced"
_numbers = itertools.count()  # of saves; the same in all processes, as they save together


class Checkpointer:
  """Saves and restores the checkpoints of one directory.

  In a run of several processes all of them make the same calls in the same order, on a
  file system they share. One save is under way at a time.

  Args:
    directory: made at the first save. Local or anything `etils.epath` opens (gs://...).
    keep: how many of the newest checkpoints stay.
    keep_every: steps divisible by it stay too; 0 = none.
    verify: "full" hashes all that was restored, "sample" every eighth tile (at least one
      a tensor), "off" nothing. Only "full" notices any changed byte; a sample notices
      lost or exchanged files and large damage, and one flipped byte in one case of 8.

  Raises:
    ValueError: an argument is out of range.
  """

  def __init__(self, directory: Any, *, keep: int = 2, keep_every: int = 0, verify: str = "full"):
    from etils import epath

    names_lib.lookup("verify mode", verify, VERIFY)
    if keep < 1 or keep_every < 0:
      raise ValueError(f"keep must be >= 1 and keep_every >= 0; got {keep} and {keep_every}")
    path = epath.Path(directory)
    self.directory = path if "://" in str(directory) else path.expanduser().absolute()
    self._keep, self._keep_every, self._verify = keep, keep_every, verify
    self._staging = staging.Staging()
    self._orbax: Any = None
    self._agreement: agreement.Agreement | None = None
    self._thread: threading.Thread | None = None
    self._failure: tuple[int, BaseException] | None = None
    if jax.process_index() == 0 and self.directory.exists():
      with self._lock() as free:
        if free:
          self._clean()

  # What there is.

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    if not self.directory.exists():
      return []
    return sorted(int(p.name) for p in self.directory.iterdir() if self._complete(p))

  def latest(self) -> int | None:
    """Step of the newest complete checkpoint, or None. All processes get process 0's answer."""
    steps = self.steps()
    step = steps[-1] if steps else -1
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    return None if step < 0 else step

  def describe(self, step: int) -> tuple[dict[str, jax.ShapeDtypeStruct], dict]:
    """Shape and dtype of every tensor by '/'-joined name, and the meta; reads no tensor."""
    manifest = self._manifest(step)
    return checks.specs(manifest), manifest["meta"]

  # Saving.

  def reserve(self, state: Any) -> None:
    """Makes the memory for copies of `state` ready, so that the first save is quick too."""
    self._staging.reserve(tree.flatten(state))

  def save(self, step: int, state: Any, meta: dict) -> None:
    """Copies `state`, and writes the copy in the background.

    A save still under way is waited for. A checkpoint of the same step is replaced.

    Args:
      step: names the checkpoint; >= 0.
      state: pytree of jax.Arrays (PRNG keys as their uint32 data). May be donated as
        soon as this returns.
      meta: anything JSON, saved with the arrays.

    Raises:
      CheckpointError: an earlier save failed. It is reported once, and this save has
        begun all the same: in several processes, which may learn of the failure at
        different times, all still make the same saves.
      TypeError, ValueError: a leaf or `meta` is nothing that can be saved.
    """
    arrays = tree.flatten(state)
    checks.savable(arrays)
    meta = json.loads(json.dumps(meta))
    self._join()
    failure, self._failure = self._failure, None
    give = self._staging.take(arrays)
    self._thread = threading.Thread(
      target=self._run, args=(int(step), give, meta, next(_numbers)), name=f"save-{step}"
    )
    self._thread.start()
    self._report(failure)

  def poll(self) -> bool:
    """True when no save is under way. Raises CheckpointError if the last one failed.

    Processes may get different answers: none may decide by it what all must do.
    """
    if self._thread is not None and self._thread.is_alive():
      return False
    self.wait()
    return True

  def wait(self) -> None:
    """Waits for the save under way. Raises CheckpointError if it failed."""
    self._join()
    failure, self._failure = self._failure, None
    self._report(failure)

  def close(self) -> None:
    """Waits, and frees what is held; to be called before the program ends.

    Raises CheckpointError if the last save failed.
    """
    try:
      self.wait()
    finally:
      if self._orbax is not None:
        self._orbax.close()
        self._orbax = None
      self._staging.close()

  # Restoring.

  def restore(
    self, like: Any, step: int | None = None, *, only: str = "", verify: str | None = None
  ) -> tuple[Any, dict]:
    """The state of a checkpoint, on the shardings of `like`, and its meta.

    Args:
      like: pytree of jax.ShapeDtypeStruct with sharding; any mesh, not only the saved one.
      step: None = the newest.
      only: part of the checkpoint that is restored, as a name prefix ("params"); the
        rest is not looked at. "" = all of it, and nothing may be left over.
      verify: another mode than the checkpointer's, for this call.

    Raises:
      CheckpointError: there is none; a tensor is missing, left over, or of another shape
        or dtype (nothing is cast); the files cannot be read or differ from their digests.
    """
    self._join()
    step = self.latest() if step is None else int(step)
    if step is None:
      raise CheckpointError(f"no complete checkpoint in {self.directory}")
    verify = verify or self._verify
    names_lib.lookup("verify mode", verify, VERIFY)
    manifest = self._manifest(step)
    specs, wanted = checks.specs(manifest), tree.flatten(like)
    if only:
      specs = {n: s for n, s in specs.items() if n == only or n.startswith(only + "/")}
    try:
      checks.compare(specs, wanted)
    except CheckpointError as error:
      raise CheckpointError(f"{self._where(step)}: {error}") from None
    nested = tree.unflatten({name: name for name in wanted})
    try:
      found = self._checkpointer().restore(
        self._path(step), args=_composite(state=handler.restore_args(wanted, nested))
      )
    except Exception as error:
      reason = error
      while reason.__cause__ is not None:  # The last one names the file.
        reason = reason.__cause__
      line = f"{self._where(step)} cannot be read: {agreement.one_line(reason)}"
      raise CheckpointError(line) from error
    arrays = tree.flatten(found[handler.STATE])
    state = jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])
    if verify != "off":
      self.check(step, state, verify=verify)
    return state, manifest["meta"]

  def check(self, step: int, state: Any, *, verify: str = "full") -> None:
    """Compares `state` (or a part of it, by name) with the digests of a checkpoint.

    Raises:
      CheckpointError: a tensor differs.
    """
    arrays, share = tree.flatten(state), VERIFY[verify]
    manifest = self._manifest(step)

    def differing(name: str) -> list[int]:
      entry = manifest["tensors"][name]
      return digests.differing(entry, pieces[name], digests.chosen(entry, name, share))

    pieces = {name: checks.pieces(x) for name, x in arrays.items()}
    with futures.ThreadPoolExecutor(min(8, 2 * len(arrays))) as pool:
      bad = [(name, t) for name, t in zip(arrays, pool.map(differing, arrays), strict=True) if t]
    anywhere = bool(bad)
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      anywhere = bool(multihost_utils.process_allgather(np.int32(len(bad))).any())
    if bad:
      name, tiles = bad[0]
      count = math.prod(manifest["tensors"][name]["tiles"])
      more = f" (and {len(bad) - 1} more tensors)" if len(bad) > 1 else ""
      raise CheckpointError(
        f"{self._where(step)} is damaged: tensor {name!r} (tile {tiles[0]} of {count}) in "
        f"{self._path(step) / handler.STATE} does not match its digest{more}"
      )
    if anywhere:
      raise CheckpointError(f"{self._where(step)} is damaged: another process says which tensor")

  # Inside.

  def _path(self, step: int):
    return self.directory / str(step)

  def _where(self, step: int) -> str:
    return f"checkpoint {step} in {self.directory}"

  def _complete(self, path: Any) -> bool:
    if not path.name.isdigit() or not (path / handler.MANIFEST / digests.MANIFEST).exists():
      return False
    # Without atomic renames orbax writes in place and commits with a marker file.
    return handler.is_local(self.directory) or (path / "commit_success.txt").exists()

  def _manifest(self, step: int) -> dict:
    if not self._complete(self._path(step)):
      there = self.steps()
      raise CheckpointError(f"{self._where(step)} is not there; complete ones: {there or 'none'}")
    try:
      manifest = digests.read(self._path(step) / handler.MANIFEST / digests.MANIFEST)
    except (ValueError, OSError) as error:
      raise CheckpointError(f"{self._where(step)}: {agreement.one_line(error)}") from None
    if manifest["step"] != step:
      raise CheckpointError(f"{self._where(step)} was saved as step {manifest['step']}")
    return manifest

  def _checkpointer(self):
    if self._orbax is None:
      self._orbax = handler.checkpointer(
        jax.process_index(), jax.process_count(), self._barrier, _TIMEOUT
      )
    return self._orbax

  def _barrier(self, *, key: str, timeout_ms: int) -> None:
    del key  # The agreement counts.
    if self._agreement is not None:
      self._agreement.barrier(timeout_ms)

  def _report(self, failure: tuple[int, BaseException] | None) -> None:
    if failure is not None:
      step, error = failure
      raise CheckpointError(
        f"checkpoint {step} in {self.directory} was not saved: {agreement.one_line(error)}; "
        f"complete ones: {self.steps() or 'none'}"
      ) from error

  def _join(self) -> None:
    if self._thread is not None:
      self._thread.join()
      self._thread = None

  def _run(self, step: int, give: Any, meta: dict, number: int) -> None:
    """The save, in its thread. Whatever goes wrong is kept for `wait`."""
    first, several = jax.process_index() == 0, jax.process_count() > 1
    self._agreement = agreement.Agreement(f"{number}/{step}") if several else None
    with contextlib.ExitStack() as stack:
      try:
        if first:
          self._begin(step, stack)
        if several:
          self._agreement.barrier()
        self._write(step, give(), meta)
      except BaseException as error:
        self._failure = (step, error)
        if several and not isinstance(error, agreement.PeerError):
          self._agreement.fail(error)
      if first:
        try:
          self._clean()
          self._prune()
        except OSError as error:
          log.warn(f"{self.directory}: old checkpoints were not removed: {error}")

  def _begin(self, step: int, stack: contextlib.ExitStack) -> None:
    """Takes the lock, and moves a checkpoint of the same step aside."""
    self.directory.mkdir(parents=True, exist_ok=True)
    if not stack.enter_context(self._lock()):
      raise CheckpointError("another process is saving there")
    if self._path(step).exists():
      self._path(step).rename(self.directory / f"{step}{_REPLACED}")

  def _write(self, step: int, staged: staging.Staged, meta: dict) -> None:
    import orbax.checkpoint as ocp

    nested = tree.unflatten({name: x for name, (x, _) in staged.items()})
    _, manifest_args = handler.manifest_classes()
    save = self._checkpointer()
    save.save(
      self._path(step),
      args=_composite(
        state=ocp.args.PyTreeSave(nested), manifest=manifest_args(staged, step, meta)
      ),
    )
    save.wait_until_finished()

  @contextlib.contextmanager
  def _lock(self):
    """Gives whether this is the only writer of the directory. A killed process holds no lock."""
    if not handler.is_local(self.directory):
      yield True
      return
    import fcntl

    with open(self.directory / ".lock", "a") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        yield False
        return
      yield True

  def _clean(self) -> None:
    """Removes what saves and deletions left unfinished. Only for the one who has the lock."""
    for path in list(self.directory.iterdir()):
      if path.name.endswith(_REPLACED):
        target = self.directory / path.name.removesuffix(_REPLACED)
        if not self._complete(target):
          path.rename(target)  # Its successor never came.
          continue
        path = path.rename(self.directory / f"{path.name}{_TMP}")
      if _TMP in path.name:
        with contextlib.suppress(FileNotFoundError):
          path.rmtree()

  def _prune(self) -> None:
    steps = self.steps()
    for step in steps[: -self._keep]:
      if not self._keep_every or step % self._keep_every:
        # First the name, so that half a deletion is never taken for a checkpoint.
        self._path(step).rename(self.directory / f"{step}{_TMP}-deleted").rmtree()


def _composite(**items):
  import orbax.checkpoint as ocp

  return ocp.args.Composite(**items)
