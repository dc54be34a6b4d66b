"""Pictures: what is drawn is where it should be, and looks as it should."""

import numpy as np
import pytest
from PIL import Image

from bigvlm.utils import draw

BLACK = np.zeros((64, 64, 3), np.uint8)


def record(**fields):
  blank = dict(
    image=BLACK, prompt="detect 7", target="7", answer="7", right=True,
    boxes=[], mask=None, target_boxes=[], target_mask=None,
  )  # fmt: skip
  return blank | fields


def has(picture, colour, area=None):
  pixels = np.asarray(picture.crop(area) if area else picture)
  return bool((pixels == np.array(colour)).all(-1).any())


def test_small_images_grow_by_whole_factors_and_large_ones_shrink():
  image = np.arange(64 * 48 * 3, dtype=np.uint8).reshape(64, 48, 3)
  grown = draw.enlarge(image, 256)
  assert grown.size == (192, 256)
  assert (np.asarray(grown)[::4, ::4] == image).all() and (
    np.asarray(grown)[3::4, 3::4] == image
  ).all()
  assert draw.enlarge(np.zeros((1000, 500, 3), np.uint8), 256).size == (128, 256)
  assert draw.enlarge(np.zeros((300, 1, 3), np.uint8), 256).size == (1, 256)


def test_boxes_frame_their_pixels():
  picture = draw.annotate(BLACK, [((0.25, 0.5, 0.5, 0.75), "")], side=256, colour=(255, 0, 0))
  red = (np.asarray(picture) == (255, 0, 0)).all(-1)
  rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
  assert (rows[0], rows[-1], columns[0], columns[-1]) == (64, 127, 128, 191)
  assert not red[68:124, 132:188].any()  # only the frame


def test_boxes_beyond_the_picture_and_without_area_are_no_error():
  for box in ((-1, -1, 2, 2), (0.5, 0.5, 0.5, 0.5), (1, 1, 1, 1), (0.9, 0.9, 0.1, 0.1)):
    assert draw.annotate(BLACK, [(box, "label")], side=256).size == (256, 256)


@pytest.mark.parametrize(
  "box", [(0.5, 0.4, 0.7, 0.6), (0.0, 0.0, 0.2, 0.2), (0.8, 0.9, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)]
)
def test_labels_stay_within_the_picture(box):
  plain = np.asarray(draw.annotate(BLACK, [(box, "")], side=256))
  labelled = np.asarray(draw.annotate(BLACK, [(box, "7")], side=256))
  added = (plain != labelled).any(-1)
  assert added.sum() > 100 and labelled.shape == plain.shape
  patch = labelled[added]
  assert (patch == draw.COLOURS[0]).all(-1).any() and (patch == (0, 0, 0)).all(-1).sum() == 0


def test_two_labels_do_not_cover_each_other():
  box = (0.5, 0.4, 0.7, 0.6)
  picture = np.asarray(draw.annotate(BLACK, [(box, "1"), (box, "2")], side=256))
  counts = [(picture == c).all(-1).sum() for c in draw.COLOURS[:2]]
  assert min(counts) > 100


def test_masks_are_shaded_where_they_are():
  mask = np.zeros((64, 64), bool)
  mask[16:32, 16:32] = True
  picture = np.asarray(draw.annotate(BLACK, mask=mask, side=256, colour=(200, 100, 0)))
  assert picture[96, 96].tolist() == [100, 50, 0]
  assert picture[64, 64].tolist() == [200, 100, 0]  # its outline
  assert picture[:63].max() == 0 and picture[130:].max() == 0
  target = np.asarray(draw.annotate(BLACK, target_mask=mask, side=256))
  assert target[64, 96].tolist() == [255, 255, 255] and target[96, 96].tolist() == [0, 0, 0]
  assert (np.asarray(draw.annotate(BLACK, mask=np.zeros_like(mask), side=256)) == 0).all()


def test_right_ones_are_green_and_wrong_ones_red_with_their_target():
  right = draw.cell(record())
  wrong = draw.cell(record(right=False, answer="1", target_boxes=[((0.2, 0.2, 0.6, 0.6), "7")]))
  assert has(right, draw.GREEN) and not has(right, draw.RED)
  assert has(wrong, draw.RED) and not has(wrong, draw.GREEN)
  assert wrong.height > right.height  # the target stands below
  inside = (20, 20, wrong.width - 20, 260)
  assert has(wrong, (255, 255, 255), inside) and not has(right, (255, 255, 255), inside)


def test_grid_holds_every_cell():
  records = [record(title="vqa"), record(right=False), record(prompt="long " * 60)]
  picture = draw.grid(records, columns=2, side=128)
  assert picture.width == 2 * draw.cell(records[0], 128).width
  assert has(picture.crop((0, 0, picture.width // 2, 150)), draw.GREEN)
  assert has(picture.crop((picture.width // 2, 0, picture.width, 150)), draw.RED)
  with pytest.raises(ValueError, match="no predictions"):
    draw.grid([])


def test_text_is_broken_between_words_and_cut_with_dots():
  letters = draw.font(16)
  lines = draw.wrap("which digit is at the top left ?", letters, 100, 4)
  assert " ".join(lines) == "which digit is at the top left ?"
  assert all(letters.getlength(line) <= 100 for line in lines)
  cut = draw.wrap("word " * 50, letters, 100, 2)
  assert len(cut) == 2 and cut[1].endswith("...") and letters.getlength(cut[1]) <= 100
  assert len(draw.wrap("x" * 500, letters, 100, 3)) == 3
  assert draw.wrap("", letters, 100, 3) == []


def test_tokens_are_shown_as_words():
  box = "<loc0001><loc0002><loc0003><loc0004>"
  assert draw.readable(f"{box} 7 ; {box}{'<seg001>' * 16} 8") == "[box] 7 ; [box] [mask] 8"
  assert draw.readable("<loc0001> 7") == "<loc0001> 7"  # a fragment is shown as it is


def test_curves_are_a_picture(tmp_path):
  loss = dict(title="loss", series={"loss": ([1, 2, 3], [3.0, 2.0, 1.0])}, x_label="step")
  scores = dict(title="vqa", series={"acc": ([0, 1], [0.1, 0.9])}, ticks=["a", "b"], limits=(0, 1))
  draw.curves([[loss, loss], [scores]], str(tmp_path / "curves.png"))
  pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
  assert pixels.shape[1] == 1200 and pixels.std() > 10
