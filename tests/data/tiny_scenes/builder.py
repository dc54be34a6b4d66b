"""TFDS builder that needs no TensorFlow: images are given as encoded bytes."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def picture(i: int) -> np.ndarray:
  """uint8 [8, 12, 3] of example i."""
  return np.full((8, 12, 3), (i, 2 * i, 100), np.uint8)


class TinyScenes(tfds.core.GeneratorBasedBuilder):
  """24 training and 5 validation examples."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "question": tfds.features.Text(),
        "answers": tfds.features.Sequence(tfds.features.Text()),
        "number": np.int64,
      }
    )
    return self.dataset_info_from_configs(features=features)

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(0, 24), "validation": self._generate_examples(24, 29)}

  def _generate_examples(self, begin, end):
    for i in range(begin, end):
      out = io.BytesIO()
      Image.fromarray(picture(i)).save(out, "PNG")
      answers = [f"{i}", f"no. {i}"]
      yield i, dict(image=out.getvalue(), question=f"wie viel? é{i}", answers=answers, number=i)
