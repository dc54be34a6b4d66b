"""`bigvlm.load`: a model from the hub, a directory, a workdir or the zoo."""

import contextlib
import copy
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bigvlm import api, build, zoo
from bigvlm import config as config_lib
from bigvlm.ckpt import sources, transfer
from bigvlm.hub import bigvision_files, fields, files, table
from bigvlm.hub import describe as describe_lib
from bigvlm.hub.model import HubModel
from bigvlm.hub.system import System
from bigvlm.layers import posemb
from bigvlm.parallel import mesh as meshes
from bigvlm.parallel import sharding
from bigvlm.utils import jaxcache, jsons

# What is fetched from the hub; never a pickle.
_TEXTS = ("*.json", "*.model", "*.txt", "*.jinja")
_WANTED = (*_TEXTS, "*.safetensors", "*.npz")
_OUTLINE = ("config.json", "model.safetensors.index.json")  # For a look at it.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*(@[\w./\-]+)?")


def load(
  name: str | pathlib.Path,
  *,
  dtype: str | None = None,
  mesh: Mesh | None = None,
  res: int | tuple[int, int] | None = None,
  init: str | None = "checkpoint",
  verify: str = "full",
  excuse: str | Sequence[str] = (),
  config: Any = None,
) -> api.Model:
  """Loads a model.

  Args:
    name: in this order: an existing path (a directory with `config.json` and safetensors, or the
      workdir of a run); a hub id `owner/name[@revision]`, with or without `hf:`; a zoo name
      `family[:arg]`, whose config names its checkpoint. A path may also be big_vision's: an `.npz`,
      or a directory with one.
    dtype: of the parameters and of the computation; None = those of the files (an `.npz` is
      computed with in float32, as big_vision does).
    mesh: where the parameters go, cut over its axes `fsdp` and `tensor`; one of any other name than
      `data` is taken for `fsdp`. None = the first device.
    res: image size in pixels, or (height, width): position tables are resampled to it.
    init: None = random weights, for a zoo name only.
    verify: "full", "sample" or "off": how much of a checkpoint that we wrote is compared with its
      digests.
    excuse: regexes of stored tensors that may be there without a use, or one.
    config: big_vision's model config of an `.npz` (`model_name`, `model`), a mapping or the path of
      a JSON file; None = `config.json` beside it, or that of a released name.

  Returns:
    A `HubModel`; an `api.Model` for a workdir and for random weights.

  Raises:
    ValueError: an unknown name or architecture; tensors that are missing, left over or of another
      shape; a damaged file; a position table that cannot become `res`.
    FileNotFoundError: no such path.
  """
  jaxcache.enable()
  dtype = fields.cast(dtype)
  if mesh is not None:
    if not isinstance(mesh, Mesh):
      raise ValueError(f"mesh= is a jax.sharding.Mesh, not {mesh!r}")
    mesh = meshes.named(mesh)
  if init is None:
    return _random(str(name), dtype, mesh)
  if init != "checkpoint":
    raise ValueError(f"init is 'checkpoint' or None (random weights), not {init!r}")
  directory = resolve(name).absolute()  # Some of its files are read later, wherever we are then.
  if is_run(directory):
    return _run(directory, dtype, mesh, res)
  with _sense(directory):
    system, source = describe(directory, config)
  npz = source if isinstance(source, bigvision_files.Adapted) else None
  files.verify(source, directory, verify)
  compute = dtype or ("float32" if npz else _stored_dtype(source))
  config = plain_config(system, compute)
  mesh = mesh or _one_device()
  with _sense(directory):
    module = build.model(config["model"], dtype=config["dtype"])
    abstract = zoo.abstract_params(config)
  layout = sharding.shardings(abstract, mesh)
  params, origin = transfer.load(
    system.map, source, abstract, shardings=layout, dtype=dtype, excuse=_patterns(excuse)
  )
  cfg = None if npz else jsons.read(directory / "config.json")
  model = HubModel(config, module, params, None, mesh, system, origin, directory, dtype, cfg, npz)
  return model if res is None else resized(model, fields.size(res))


def _patterns(excuse: str | Sequence[str]) -> tuple[str, ...]:
  """Regexes of what is excused; raises ValueError for one that is none."""
  found = (excuse,) if isinstance(excuse, str) else tuple(excuse)
  for pattern in found:
    try:
      re.compile(pattern)
    except re.error as e:
      raise ValueError(f"excuse={pattern!r} is no regex: {e}") from None
  return found


@contextlib.contextmanager
def _sense(directory: pathlib.Path) -> Iterator[None]:
  """Makes one line of what a config raises whose values are no sizes, names or objects."""
  try:
    yield
  except (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError) as e:
    raise ValueError(
      f"the config of {directory} describes no model that can be built: {_first_line(e)}"
    ) from e


def resolve(name: str | pathlib.Path) -> pathlib.Path:
  """The directory of a checkpoint; what is on the hub is fetched, resumably.

  Raises:
    FileNotFoundError: no such path. ValueError: neither a path, a hub id nor a zoo name, or a zoo
      name whose config names no checkpoint.
  """
  found = _locate(name)
  return found if isinstance(found, pathlib.Path) else _fetch(found)


def _locate(name: str | pathlib.Path) -> pathlib.Path | str:
  """The path of a checkpoint that is here, or a hub id without `hf:`; raises as `resolve`."""
  path = pathlib.Path(name)
  if path.exists():
    return path if path.is_dir() or path.suffix == ".npz" else path.parent
  text = str(name)
  if text.startswith("hf:") or _HUB_ID.fullmatch(text):
    return text.removeprefix("hf:")
  file = pathlib.PurePath(text).suffix in (".npz", ".safetensors")
  if file or text.startswith(("/", "./", "../", "~")) or "/" in text.partition(":")[0]:
    raise FileNotFoundError(f"no checkpoint at {text}")
  source = zoo.load_config(text).init.source
  if not source:
    raise ValueError(f"the config {text!r} names no checkpoint; load(..., init=None) is random")
  return _locate(source)


def outline(
  name: str | pathlib.Path, *, texts: bool = False
) -> tuple[System, sources.Source, pathlib.Path]:
  """What a checkpoint is, without its weights: system, tensors, directory of its small files.

  Of one on the hub `config.json` is fetched, and of the weights the headers alone, unless they are
  in the local cache already; the tensors then have no numbers (see `hub.headers`).

  Args:
    name: as for `resolve`. texts: the files of tokenizer and preprocessor are wanted too.

  Raises:
    ValueError, FileNotFoundError: as `resolve` and `describe`.
  """
  found = _locate(name)
  if isinstance(found, pathlib.Path):
    return *describe(found), found
  directory = _fetch(found, _TEXTS if texts else _OUTLINE)
  try:
    sources.open_source(directory)
  except (FileNotFoundError, ValueError):  # Not whole in the cache, or pickles that are there.
    source = _headers(found, directory)
    if source is not None and (directory / "config.json").is_file():
      return *_read(directory, source), directory
    directory = _fetch(found)
  return *describe(directory), directory


def _headers(name: str, directory: pathlib.Path) -> sources.Source | None:
  """The tensors of a hub id at the commit of its snapshot; None without safetensors."""
  from bigvlm.hub import headers

  try:
    return headers.Headers(name.partition("@")[0], directory.name)
  except FileNotFoundError:
    return None
  except Exception as e:  # Of several libraries, as in `_fetch`.
    raise ValueError(
      f"the weights of {name} are not in the local cache, and reading their headers from the hub "
      f"failed: {_first_line(e)}"
    ) from e


def is_checkpoint(name: str) -> bool:
  """Whether a name is a checkpoint of others: on the hub, a directory of theirs, an .npz file."""
  path = pathlib.Path(name)
  if path.is_dir():
    ours = (path / "config.json").is_file() or bigvision_files.find(path) is not None
    return not is_run(path) and ours
  if path.exists():
    return path.suffix == ".npz"
  return name.startswith("hf:") or bool(_HUB_ID.fullmatch(name))


def describe(directory: pathlib.Path, config: Any = None) -> tuple[System, sources.Source]:
  """The system and the tensors of a directory or an `.npz`; `config` as for `load`."""
  npz = bigvision_files.find(directory, config)
  if npz is not None:
    return bigvision_files.describe(npz, config)
  if config is not None:
    raise ValueError(f"config= is for big_vision's .npz files; {directory} holds none")
  path = directory / "config.json"
  if not path.is_file():
    raise FileNotFoundError(f"{directory} has no config.json")
  return _read(directory, None)


def _read(directory: pathlib.Path, source: sources.Source | None) -> tuple[System, sources.Source]:
  """The system of a directory's `config.json` and of its tensors, or of those of `source`."""
  path = directory / "config.json"
  system = table.system(jsons.read(path), str(path))
  source = source or sources.open_source(directory)
  return (system.refine(system, source) if system.refine else system), source


def bare(name: str | pathlib.Path) -> HubModel:
  """A checkpoint without its weights, on no device: what its files say, and what prepares inputs.

  Args:
    name: a path or a hub id, as for `resolve`.
  """
  system, _, directory = outline(name, texts=True)
  config = plain_config(system, "float32")
  module = build.model(config["model"])
  return HubModel(config, module, None, None, None, system, directory=directory)


def plain_config(system: System, dtype: str) -> dict[str, Any]:
  """A system as the fields of a config that build a module: `model`, `processor`, `dtype`."""
  return {
    "model": system.model,
    "processor": {"image": {"size": system.image_size or 8}, "text_len": system.text_len},
    "dtype": {"params": dtype, "compute": dtype, "logits": "float32"},
  }


def _fetch(name: str, wanted: Sequence[str] = _WANTED) -> pathlib.Path:
  from huggingface_hub import snapshot_download

  repo, _, revision = name.partition("@")
  try:
    found = snapshot_download(repo, revision=revision or None, allow_patterns=list(wanted))
  except Exception as e:  # Of several libraries: no such name, no network, no permission.
    why = _first_line(e)
    raise ValueError(f"{name} is no path here, and fetching it from the hub failed: {why}") from e
  return pathlib.Path(found)


def _first_line(e: Exception) -> str:
  return (str(e).strip() or repr(e)).splitlines()[0]


def is_run(directory: str | pathlib.Path) -> bool:
  """Whether a path is a workdir of ours, or a checkpoint in one."""
  directory = pathlib.Path(directory)
  if "checkpoints" in directory.parts and not (directory / "config.json").is_file():
    return True
  path = directory / "config.json"
  return path.is_file() and "stages" in jsons.read(path)


def _run(directory: pathlib.Path, dtype: str | None, mesh: Mesh | None, res: Any) -> api.Model:
  for what, value in (("dtype", dtype), ("mesh", mesh), ("res", res)):
    if value is not None:
      raise ValueError(f"{directory} is the workdir of a run; {what}= is for checkpoints of others")
  from bigvlm.trainers import evaluate

  return evaluate.load(directory)


def _random(name: str, dtype: str | None, mesh: Mesh | None) -> api.Model:
  """Random weights of a zoo name; a `HubModel` where transformers has a class for it."""
  cfg = config_lib.plain(zoo.load_config(name))
  if dtype is not None:
    cfg["dtype"] = {"params": dtype, "compute": dtype, "logits": "float32"}
  mesh = mesh or _one_device()
  module = build.model(cfg["model"], dtype=cfg["dtype"])
  batch = zoo.abstract_batch(cfg["model"], cfg["processor"])
  layout = sharding.shardings(zoo.abstract_params(cfg), mesh)

  def make(rng):
    zeros = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), batch)
    return module.init(rng, zeros)["params"]

  params = jax.jit(make, out_shardings=layout)(jax.random.key(0))
  size, length = build.image_size(cfg["processor"]), cfg["processor"]["text_len"]
  try:
    described, system = describe_lib.describe(
      cfg["model"], size, length, cfg["dtype"]["params"], family=cfg["name"], hub=cfg["hub"]
    )
  except ValueError as e:
    return _Undescribed(cfg, module, params, mesh, str(e))
  return HubModel(cfg, module, params, None, mesh, system, json=described)


class _Undescribed(api.Model):
  """A model that no class of transformers is."""

  def __init__(self, config: Any, module: Any, params: Any, mesh: Mesh, why: str):
    super().__init__(config, module, params, None, mesh)
    self._why = why

  def save_hf(self, directory: Any, *, dtype: str | None = None) -> None:
    """See `HubModel.save_hf`.

    Raises:
      ValueError: always; says why.
    """
    raise ValueError(self._why)


def _one_device() -> Mesh:
  return meshes.make({"data": 1, "fsdp": 1, "tensor": 1}, jax.local_devices()[:1])


def resized(model: HubModel, size: tuple[int, int]) -> HubModel:
  """The model with its position tables for another image size.

  Raises:
    ValueError: a model without images, or an image smaller than a patch.
  """
  system = model.system
  if system.image_size is None:
    raise ValueError("res= is for models with images")
  params = dict(model.params)
  towers: dict[str, Mapping] = dict(params["encoders"])
  for name, encoder in model.module.encoders.items():
    have, want = encoder.grid(*system.image_size), encoder.grid(*size)
    if getattr(encoder, "fixed", False) and have != want:
      raise ValueError(f"res={size}: encoder {name!r} has tables for {system.image_size} alone")
    if min(want) < 1:
      raise ValueError(f"res={size} holds no patch of {encoder.patch} pixels")
    if "posemb" in towers[name] and not encoder.resizes:
      if system.options.get("flat_table") and have[0] != have[1]:
        raise ValueError(f"a position table of {have[1]} rows has no grid that could become {want}")
      old = towers[name]["posemb"]
      resized = posemb.resample(np.asarray(old), have, want, encoder.resample)
      towers[name] = dict(towers[name]) | {"posemb": jax.device_put(resized, old.sharding)}
  params["encoders"] = towers
  system = dataclasses.replace(system, image_size=size)
  config = plain_config(system, model.config["dtype"]["compute"])
  resized = copy.copy(model)
  resized.config, resized.params, resized.system = config, params, system
  return resized


def _stored_dtype(source: sources.Source) -> str:
  """The floating dtype that most of the stored numbers have."""
  sizes: dict[np.dtype, int] = {}
  for spec in source.specs().values():
    if jax.numpy.issubdtype(spec.dtype, np.floating):
      sizes[spec.dtype] = sizes.get(spec.dtype, 0) + int(np.prod(spec.shape))
  return str(max(sizes, key=sizes.get)) if sizes else "float32"
