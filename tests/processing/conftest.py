"""Pictures and tokenisers shared by the tests of processing."""

import io

import numpy as np
import pytest
from PIL import Image

from bigvlm.processing import tokenizer

TEXTS = [
  "which digit is at the top left ?",
  "how many 7s ?",
  "detect 7",
  "segment 3",
  "caption en",
  "7 2 5\n",
] * 10


def scene(height: int = 60, width: int = 80) -> np.ndarray:
  """uint8 [H, W, 3]: a smooth picture whose four corners all differ."""
  y, x = np.mgrid[0:height, 0:width]
  r = 255 * y / height
  g = 255 * x / width
  b = 127 + 90 * np.sin(x / 9) * np.cos(y / 7)
  return np.stack([r, g, b], -1).astype(np.uint8)


def encoded(image, kind: str, **options) -> bytes:
  """The bytes of a file of an array or a PIL image."""
  out = io.BytesIO()
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  image.save(out, kind, **options)
  return out.getvalue()


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory) -> str:
  """A model file without location and segmentation pieces (as Gemma's)."""
  path = tmp_path_factory.mktemp("tok") / "plain.model"
  tokenizer.train(TEXTS, path, 360)
  return str(path)


@pytest.fixture(scope="session")
def full_model(plain_model, tmp_path_factory) -> str:
  """The same file with the 1024 + 128 pieces in it (as PaliGemma's)."""
  from sentencepiece import sentencepiece_model_pb2 as pb

  with open(plain_model, "rb") as f:
    proto = pb.ModelProto.FromString(f.read())
  for name in [f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)]:
    proto.pieces.add(piece=name, score=0.0, type=pb.ModelProto.SentencePiece.USER_DEFINED)
  path = tmp_path_factory.mktemp("tok") / "full.model"
  path.write_bytes(proto.SerializeToString())
  return str(path)


@pytest.fixture(scope="session")
def tok(plain_model) -> tokenizer.SentencePiece:
  """The tokeniser of `plain_model`."""
  return tokenizer.SentencePiece(plain_model)


@pytest.fixture
def pictures():
  """The functions `scene` and `encoded`."""

  class Pictures:
    pass

  Pictures.scene, Pictures.encoded = staticmethod(scene), staticmethod(encoded)
  return Pictures
