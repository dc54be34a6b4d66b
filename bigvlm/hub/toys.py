"""Toy checkpoints: a system of a few thousand parameters in a directory like those on the hub.

Made offline from random weights, for smoke runs of training recipes (`tiny`) and for tests: config,
safetensors, a tokenizer of bytes, preprocessor. What each looks like is in `toys.json`, which
`tests/parity/make_toys.py` writes: special tokens, and the content of files, where "@TOKEN" stands
for the id of a token and "@vocab" for their number.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from bigvlm import build, zoo
from bigvlm.hub import load, table
from bigvlm.hub.model import HubModel
from bigvlm.parallel import mesh as meshes
from bigvlm.utils import jaxcache, names

FILE = pathlib.Path(__file__).with_name("toys.json")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")  # Ids 0 to 3 of every toy.


def write(name: str, directory: str | pathlib.Path, seed: int = 0) -> pathlib.Path:
  """Writes a toy checkpoint.

  Args:
    name: a key of `toys.json`.
    directory: made if it is not there.
    seed: of its weights.

  Raises:
    ValueError: no such toy.
  """
  toy = names.lookup("toy checkpoint", name, json.loads(FILE.read_text("utf-8")))
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  tokenizer = _tokenizer(toy["tokens"])
  files = {file: _filled(content, tokenizer) for file, content in toy["files"].items()}
  config = files.pop("config.json")
  named = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
  named["tokenizer_class"] = "PreTrainedTokenizerFast"
  for file, content in files.items():
    path = directory / file
    path.parent.mkdir(exist_ok=True)
    if path.name == "tokenizer_config.json":
      tokenizer.save(str(path.with_name("tokenizer.json")))
      content = named | content
    path.write_text(json.dumps(content, indent=1), "utf-8")
  _model(config, seed).save_hf(directory)
  return directory


def _tokenizer(tokens: Sequence[str]) -> tokenizers.Tokenizer:
  """One token a byte, and special tokens in front of them; a text begins with `<s>`."""
  special = (*SPECIAL, *tokens)
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {token: n for n, token in enumerate((*special, *letters))}
  made = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens(list(special))
  made.post_processor = processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
  )
  return made


def _filled(value: Any, tokenizer: tokenizers.Tokenizer) -> Any:
  """A file's content with ids for "@TOKEN" and the number of tokens for "@vocab"."""
  if isinstance(value, dict):
    return {k: _filled(v, tokenizer) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_filled(v, tokenizer) for v in value]
  if not isinstance(value, str) or not value.startswith("@"):
    return value
  if value == "@vocab":
    return tokenizer.get_vocab_size()
  return tokenizer.token_to_id(value[1:])


def _model(config: dict[str, Any], seed: int) -> HubModel:
  """A model of a `config.json` with random weights."""
  system = table.system(config, "a toy's config.json")
  cfg = load.plain_config(system, "float32")
  module = build.model(cfg["model"], dtype=cfg["dtype"])
  batch = zoo.abstract_batch(cfg["model"], cfg["processor"])
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), batch)
  make = jax.jit(
    lambda key: module.init(key, zeros)["params"],
    compiler_options=jaxcache.known(jaxcache.QUICK),
  )
  params = make(jax.random.key(seed))
  mesh = meshes.make({"data": 1, "fsdp": 1, "tensor": 1}, jax.local_devices()[:1])
  return HubModel(cfg, module, params, None, mesh, system, json=config)
