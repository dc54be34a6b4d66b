"""big_vision as a peer: its own decoding of its own PaliGemma, at the reduced size.

Needs a checkout of google-research/big_vision on PYTHONPATH and nothing that bigvlm lacks: of
TensorFlow it imports the file functions alone, which nothing here calls, so their name is enough.
"""

import contextlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import workloads


@contextlib.contextmanager
def _tensorflow():
  """Lets `import tensorflow.io.gfile` pass inside where there is no TensorFlow."""
  importlib.import_module("flax.training.checkpoints")  # Would take the stand-in for TensorFlow.
  names = ("tensorflow", "tensorflow.io", "tensorflow.io.gfile")
  absent = importlib.util.find_spec(names[0]) is None
  if absent:
    parts = [types.ModuleType(name) for name in names]
    parts[0].io, parts[1].gfile = parts[1:]
    sys.modules.update(zip(names, parts, strict=True))
  yield
  for name in names if absent else ():
    del sys.modules[name]


def _model(tiny: bool) -> Any:
  """The model of `workloads.prompts`; big_vision names sizes, so the name is given other ones."""
  import ml_collections

  with _tensorflow():
    from big_vision.models import vit  # noqa: F401
    from big_vision.models.ppp import gemma
    from big_vision.models.proj.paligemma import gemma_bv, paligemma  # noqa: F401

  sizes = workloads.prompts(1, tiny)[0]
  image, text = sizes["encoders"]["image"], sizes["decoder"]
  named = dict(
    variant="gemma_2b",
    width=text["width"],
    depth=text["depth"],
    mlp_dim=text["hidden"],
    num_heads=text["heads"],
    num_kv_heads=text["kv_heads"],
    head_dim=text["head_dim"],
    vocab_size=text["vocab"],
    norm_eps=1e-6,
    scan=True,
    remat_policy="nothing_saveable",
  )
  gemma.get_config = lambda variant: ml_collections.ConfigDict(named)
  sizes_of_image = dict(
    width=image["width"],
    depth=image["depth"],
    mlp_dim=image["hidden"],
    num_heads=image["heads"],
    patch_size=(image["patch"], image["patch"]),
    pool_type="none",
    scan=True,
  )
  parts = dict(img=sizes_of_image, llm=dict(variant="gemma_2b"))
  return paligemma.Model(**ml_collections.FrozenConfigDict(parts))


def decode(rows: int, tiny: bool) -> tuple[Callable[[int], Any], dict]:
  """Greedy generation in float32, the only type it computes in: (tokens -> ids, facts).

  Its cache is in bfloat16, its default. Pictures and prompts are those of `workloads.prompts`.
  """
  import jax

  from bigvlm.trainers import launch

  launch.initialize()
  model = _model(tiny)
  _, ours = workloads.prompts(rows, tiny)
  pixels = ours.media["image"].pixels[:, 0].astype(np.float32) / 127.5 - 1
  text = np.asarray(ours.text.tokens)[:, -workloads.PROMPT :]
  batch = dict(
    image=pixels,
    text=text,
    mask_ar=np.zeros_like(text),
    mask_input=np.ones(text.shape, bool),
    _mask=np.ones(rows, bool),
  )
  given = (batch["image"], batch["text"], batch["mask_ar"])
  shapes = jax.eval_shape(model.init, jax.random.key(0), *given)["params"]
  state = dict(params=workloads.drawn(shapes))
  from big_vision.trainers.proj.paligemma import predict_fns

  run = predict_fns.get_all(model)["decode"]

  def generate(new: int):
    how = dict(devices=jax.devices(), max_decode_len=new, eos_token=-1)
    return jax.block_until_ready(run(state, batch, **how))

  return generate, dict(mode="float32", versions=dict(jax=jax.__version__))
