"""Frames of videos: from files, animations, folders, lists and arrays."""

import sys

import av
import numpy as np
import pytest
from PIL import Image

from bigvlm.processing import video

FRAMES = np.stack([np.full((12, 16, 3), 20 * n, np.uint8) for n in range(10)])


def shades(clip):
  """The number of every frame, by its brightness."""
  return [round(float(x.mean()) / 20) for x in clip.frames]


@pytest.fixture
def film(tmp_path):
  """A file of ten frames, five a second."""
  path = tmp_path / "film.mp4"
  with av.open(str(path), "w") as file:
    stream = file.add_stream("mpeg4", rate=5)
    stream.width, stream.height, stream.pix_fmt = 16, 12, "yuv420p"
    for x in FRAMES:
      file.mux(stream.encode(av.VideoFrame.from_ndarray(x, format="rgb24")))
    file.mux(stream.encode())
  return path


@pytest.fixture
def folder(tmp_path):
  """Ten images whose names do not sort as their numbers do."""
  for n, x in enumerate(FRAMES):
    Image.fromarray(x).save(tmp_path / f"frame{n + 1}.png")
  (tmp_path / "notes.txt").write_text("no frame")
  return tmp_path


def test_frames_of_a_file(film):
  clip = video.read(film)
  assert clip.frames.shape == (10, 12, 16, 3) and clip.frames.dtype == np.uint8
  assert (clip.fps, clip.total, clip.duration) == (5.0, 10, 2.0)
  assert shades(clip) == list(range(10))


def test_frames_by_number_and_by_rate(film):
  clip = video.read(film, count=4)
  assert clip.picked == (0, 2, 5, 7) and shades(clip) == [0, 2, 5, 7]
  assert clip.times(1.0) == [0.0, 0.4, 1.0, 1.4]
  clip = video.read(film, fps=2)
  assert shades(clip) == [0, 2, 5, 7] and clip.rate(1.0) == 2.0
  assert shades(video.read(film, pick=lambda total, fps: [total - 1, 0])) == [9, 0]


def test_folders_lists_arrays_and_animations(folder, tmp_path):
  path = tmp_path / "film.gif"
  images = [Image.fromarray(x) for x in FRAMES]
  images[0].save(path, save_all=True, append_images=images[1:], duration=250)
  for source in (folder, images, list(FRAMES), FRAMES, FRAMES.transpose(0, 3, 1, 2), path):
    clip = video.read(source, count=5)
    assert shades(clip) == [0, 2, 4, 6, 8], source
  assert video.read(path).fps == 4.0
  assert shades(video.read(folder, rate=5, fps=1)) == [0, 5]


def test_a_clip_is_sampled_once():
  clip = video.read(FRAMES, count=5)
  assert video.read(clip, count=2) is clip
  assert shades(video.read(video.read(FRAMES), count=2)) == [0, 5]


@pytest.mark.parametrize(
  ("source", "settings", "message"),
  [
    (FRAMES, dict(count=11), "cannot take 11 frames of a video of 10"),
    (FRAMES, dict(fps=1), "no frame rate"),
    (FRAMES, dict(fps=1, count=2), "not both"),
    (FRAMES.astype(np.float32), {}, "float32"),
    ([], {}, "no frames"),
    ([FRAMES[0], FRAMES[0, :5]], {}, "different sizes"),
    (3, {}, "int, not a video"),
    ("nothing.mp4", {}, "there is no nothing.mp4"),
  ],
)
def test_what_is_no_video_is_said(source, settings, message):
  with pytest.raises(ValueError, match=message):
    video.read(source, **settings)


def test_a_damaged_file_is_named(tmp_path):
  path = tmp_path / "film.mp4"
  path.write_bytes(b"no film")
  with pytest.raises(ValueError, match="film.mp4 is no video"):
    video.read(path)


def test_without_pyav_the_extra_is_named(monkeypatch, tmp_path):
  path = tmp_path / "film.mp4"
  path.write_bytes(b"a film")
  monkeypatch.setitem(sys.modules, "av", None)
  with pytest.raises(ImportError, match=r"pip install 'bigvlm\[video\]'"):
    video.read(path)
