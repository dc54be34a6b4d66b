"""The mask codec on the host (NumPy and Pillow only).

It is PaliGemma's VQ-VAE (AiT, arXiv 2301.02229): a 64x64 crop of a mask becomes 16 codes
out of 128 and back. Its parameters are a dict with the names and layouts of the published
`vae-oid.npz` ("encoder.0.weight" [O, I, kh, kw], "_vq_vae._embedding" [128, 512], ...);
`bigvlm.models.mask_codec` turns the tree of the flax module into that dict.
"""

import numpy as np
from PIL import Image

CROP = 64
CODES = 16

Params = dict[str, np.ndarray]


def load(path: str) -> Params:
  """Reads a codec's `.npz` (published names)."""
  with np.load(path, allow_pickle=False) as f:
    params = {k: f[k].astype(np.float32) for k in f.files}
  for key in ("encoder.0.weight", "_vq_vae._embedding", "decoder.12.weight"):
    if key not in params:
      raise ValueError(f"{path} is not a mask codec: it has no {key!r}")
  return params


def _conv(p: Params, name: str, x: np.ndarray, stride: int = 1, pad: int = 0) -> np.ndarray:
  """torch's Conv2d over x [N, H, W, C]."""
  w = p[f"{name}.weight"]
  k = w.shape[2]
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  win = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))[:, ::stride, ::stride]
  n, h, v = win.shape[:3]
  out = win.reshape(n * h * v, -1) @ w.reshape(len(w), -1).T
  return out.reshape(n, h, v, -1) + p[f"{name}.bias"]


def _up(p: Params, name: str, x: np.ndarray) -> np.ndarray:
  """torch's ConvTranspose2d, 4x4, stride 2, padding 1, over x [N, H, W, C]."""
  w = p[f"{name}.weight"]  # [I, O, 4, 4]
  n, h, v, c = x.shape
  part = (x.reshape(-1, c) @ w.reshape(c, -1)).reshape(n, h, v, -1, 4, 4)
  out = np.zeros((n, 2 * h + 2, 2 * v + 2, w.shape[1]), np.float32)
  for a in range(4):
    for b in range(4):
      out[:, a : a + 2 * h : 2, b : b + 2 * v : 2] += part[..., a, b]
  return out[:, 1:-1, 1:-1] + p[f"{name}.bias"]


def _residual(p: Params, name: str, x: np.ndarray) -> np.ndarray:
  y = np.maximum(_conv(p, f"{name}.net.0", x, pad=1), 0)
  y = np.maximum(_conv(p, f"{name}.net.2", y, pad=1), 0)
  return x + _conv(p, f"{name}.net.4", y)


def encode(params: Params, crops: np.ndarray, batch: int = 256) -> np.ndarray:
  """Codes int64 [N, 16] of mask crops float [N, 64, 64] in [0, 1], row-major."""
  book = params["_vq_vae._embedding"]
  out = []
  for i in range(0, len(crops), batch):
    x = 2 * (np.asarray(crops[i : i + batch], np.float32)[..., None] - 0.5)
    for layer in (0, 2, 4, 6):
      x = np.maximum(_conv(params, f"encoder.{layer}", x, 2, 1), 0)
    for layer in (8, 9):
      x = _residual(params, f"encoder.{layer}", x)
    z = _conv(params, "encoder.10", x).reshape(-1, book.shape[1])
    out.append((np.square(book).sum(1) - 2 * z @ book.T).argmin(1).reshape(-1, CODES))
  return np.concatenate(out)


def decode(params: Params, codes: np.ndarray) -> np.ndarray:
  """Mask crops float32 [N, 64, 64], about -1..1 (inside > 0), of codes int [N, 16]."""
  codes = np.asarray(codes)
  x = params["_vq_vae._embedding"][codes].reshape(len(codes), 4, 4, -1)
  x = np.maximum(_conv(params, "decoder.0", x), 0)
  for layer in (2, 3):
    x = _residual(params, f"decoder.{layer}", x)
  for layer in (4, 6, 8, 10):
    x = np.maximum(_up(params, f"decoder.{layer}", x), 0)
  return _conv(params, "decoder.12", x)[..., 0]


def _pixels(box, height: int, width: int) -> tuple[int, int, int, int]:
  y0, x0, y1, x1 = np.rint(np.asarray(box, np.float64) * (height, width, height, width))
  return int(y0), int(x0), int(y1), int(x1)


def crop(mask: np.ndarray, box) -> np.ndarray:
  """The box's part of a mask bool [H, W] as float32 [64, 64] in [0, 1] (bilinear, antialias)."""
  y0, x0, y1, x1 = _pixels(box, *mask.shape)
  part = Image.fromarray(np.asarray(mask[y0:y1, x0:x1], np.uint8) * 255)
  return np.asarray(part.resize((CROP, CROP), Image.Resampling.BILINEAR), np.float32) / 255


def paste(decoded: np.ndarray, box, height: int, width: int) -> np.ndarray:
  """Puts a decoded crop [64, 64] into its box of an empty mask, bool [height, width]."""
  out = np.zeros((height, width), bool)
  y0, x0, y1, x1 = _pixels(np.clip(box, 0, 1), height, width)
  if y1 > y0 and x1 > x0:
    part = Image.fromarray(np.asarray(decoded, np.float32))
    part = part.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
    out[y0:y1, x0:x1] = np.asarray(part) > 0
  return out
