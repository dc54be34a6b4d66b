"""The tensors of a repository on the hub by the headers of its files, without downloading those."""

import math
import pathlib
import struct
from collections.abc import Mapping

import numpy as np

from bigvlm.ckpt import sources

_SAMPLES, _BYTES = 4, 4096  # Of a tensor, when two are compared.


class Headers:
  """The tensors of a repository at a commit: names, shapes, dtypes.

  It is a `sources.Source` for looking at. `read` gives zeros that take no memory; whether two
  tensors have the same numbers is told by a sample of their bytes, fetched by range.

  Raises:
    FileNotFoundError: the repository has no safetensors.
    ValueError: a dtype that is not supported.
  """

  def __init__(self, repo: str, commit: str):
    import huggingface_hub
    from huggingface_hub.errors import NotASafetensorsRepoError

    self.path = pathlib.Path(f"{repo}@{commit}")
    self._repo, self._commit = repo, commit
    try:
      found = huggingface_hub.get_safetensors_metadata(repo, revision=commit)
    except NotASafetensorsRepoError as e:
      raise FileNotFoundError(str(e)) from e
    self._places, self._specs, self._starts = {}, {}, {}
    for file, header in found.files_metadata.items():
      for name, x in header.tensors.items():
        self._specs[name] = sources.spec(x.dtype, x.shape, f"{self.path}/{file}", name)
        self._places[name] = (file, *x.data_offsets)

  def specs(self) -> Mapping[str, sources.Spec]:
    """Every tensor there is."""
    return self._specs

  def read(self, key: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """Zeros of the shape and dtype of a tensor or of a slice of it."""
    shape, dtype = self._specs[key]
    return np.broadcast_to(np.zeros((), dtype), shape)[tuple(index)]

  def same(self, a: str, b: str) -> bool:
    """Whether a sample of the bytes of two tensors is the same."""
    if self._specs[a] != self._specs[b]:
      return False
    shape, dtype = self._specs[a]
    size = math.prod(shape) * dtype.itemsize
    last = max(size - _BYTES, 0)
    starts = sorted({last * n // (_SAMPLES - 1) for n in range(_SAMPLES)})
    return all(self._sample(a, at, size) == self._sample(b, at, size) for at in starts)

  def _sample(self, key: str, at: int, size: int) -> bytes:
    file, begin, _ = self._places[key]
    if file not in self._starts:  # The data begin after the header, whose length comes first.
      self._starts[file] = 8 + struct.unpack("<Q", self._fetch(file, 0, 8))[0]
    at += self._starts[file] + begin
    return self._fetch(file, at, min(_BYTES, size))

  def _fetch(self, file: str, at: int, count: int) -> bytes:
    """Bytes [at, at + count) of a file.

    Raises:
      ValueError: the hub gives other bytes than those.
    """
    import huggingface_hub
    from huggingface_hub import utils

    url = huggingface_hub.hf_hub_url(self._repo, file, revision=self._commit)
    headers = utils.build_hf_headers() | {"range": f"bytes={at}-{at + count - 1}"}
    response = utils.get_session().get(url, headers=headers, timeout=60, follow_redirects=True)
    utils.hf_raise_for_status(response)
    if response.status_code != 206 or len(response.content) != count:
      raise ValueError(f"{self.path}/{file}: the hub does not give ranges of bytes")
    return response.content
