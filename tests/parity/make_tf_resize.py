"""Golden pixels of TensorFlow's bilinear resizing and of what big_vision makes of them.

    pip install tensorflow-cpu pillow      # 2.21.0 made the fixture; nothing else needs it
    python tests/parity/make_tf_resize.py

Every case is an image (`in`, uint8), `tf.image.resize(method="bilinear")` of it without and with
antialias (`plain`, `anti`, float32), and both after `resize` of google-research/big_vision,
`pp/ops_image.py`, which clips and casts to the dtype that came in (`plain_op`, `anti_op`).
"""

import io
import pathlib

import numpy as np
from PIL import Image

FILE = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "tf_resize" / "golden.npz"
# (height, width) before and after, channels, format that the picture went through.
CASES = (
  ((37, 53), (24, 24), 3, "png"),
  ((61, 47), (24, 16), 3, "jpeg"),
  ((17, 19), (28, 32), 3, "jpeg"),
  ((9, 40), (21, 13), 3, "png"),
  ((24, 24), (24, 24), 3, "png"),
  ((48, 48), (24, 24), 3, "png"),
  ((5, 3), (16, 16), 3, "png"),
  ((64, 30), (7, 5), 1, "png"),
  ((13, 29), (30, 31), 1, "jpeg"),
  ((97, 71), (9, 70), 1, "png"),
)


def picture(rng, size, channels, kind):
  """uint8 [H, W, C]: waves, noise and edges, as a file of that kind gives them back."""
  y, x = (np.linspace(0, 1, n) for n in size)
  phase = rng.uniform(0, 6, (2, channels))
  waves = np.sin(7 * y[:, None, None] + phase[0]) + np.cos(9 * x[None, :, None] + phase[1])
  values = 127 + 60 * waves + rng.normal(0, 12, (*size, channels))
  values[size[0] // 3 : size[0] // 2, size[1] // 4 :] = rng.integers(0, 2, channels) * 255
  pixels = np.clip(values, 0, 255).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, kind)
  return np.asarray(Image.open(file)).reshape(pixels.shape)


def main():
  """Writes the fixture."""
  import tensorflow as tf

  rng, out = np.random.default_rng(0), {}
  for n, (size, wanted, channels, kind) in enumerate(CASES):
    image = picture(rng, size, channels, kind)
    out[f"{n}/in"] = image
    for name, antialias in (("plain", False), ("anti", True)):
      found = tf.image.resize(image, wanted, method="bilinear", antialias=antialias)
      out[f"{n}/{name}"] = found.numpy()
      op = tf.cast(tf.clip_by_value(found, tf.uint8.min, tf.uint8.max), tf.uint8)
      out[f"{n}/{name}_op"] = op.numpy()
  FILE.parent.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(FILE, **out)
  print(f"{FILE.name}: {FILE.stat().st_size:,} bytes, tensorflow {tf.__version__}")


if __name__ == "__main__":
  main()
