"""Keypoints as CUB-200-2011 writes them, and where they are in what the network sees."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from diml.data import Preprocess
from diml.faithfulness.keypoints import in_view, keypoint_accuracy, keypoint_folder, keypoints_in_view, read_keypoints


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    (tmp_path / "images" / "001.Bird").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (300, 200)).save(tmp_path / "images" / "001.Bird" / f"{name}.jpg")
    (tmp_path / "images.txt").write_text("1 001.Bird/a.jpg\n2 001.Bird/b.jpg\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "part_locs.txt").write_text("1 1 150.0 100.0 1\n1 2 10.0 100.0 1\n1 3 0.0 0.0 0\n2 1 0 0 0\n")
    return tmp_path


def test_visible_keypoints_are_read_by_image(birds):
    assert read_keypoints(birds) == {"001.Bird/a.jpg": {1: (150.0, 100.0), 2: (10.0, 100.0)}, "001.Bird/b.jpg": {}}
    image = birds / "images" / "001.Bird" / "a.jpg"
    assert keypoint_folder(image) == birds
    assert keypoint_folder(Path("elsewhere/x.jpg")) is None
    seen = keypoints_in_view(read_keypoints(birds), image, birds, Preprocess())
    assert seen == {1: pytest.approx((0.5, 0.5))}  # keypoint 2 is left of what the crop keeps


def test_a_damaged_list_is_named(birds):
    (birds / "parts" / "part_locs.txt").write_text("1 1 150.0\n")
    with pytest.raises(ValueError, match=r"part_locs.txt, line 1: need 5 words"):
        read_keypoints(birds)
    (birds / "parts" / "part_locs.txt").write_text("9 1 1.0 1.0 1\n")
    with pytest.raises(ValueError, match="image number 9 is not in"):
        read_keypoints(birds)


@pytest.mark.parametrize("preprocess", [Preprocess(), Preprocess(mode="square"), Preprocess(size=64, resize=None)])
@pytest.mark.parametrize("size", [(300, 200), (120, 360), (256, 256)])
def test_a_mark_is_where_the_view_shows_it(preprocess, size):
    image = Image.new("RGB", size, "black")
    at = (0.6 * size[0], 0.55 * size[1])
    radius = max(size) // 40
    image.paste("white", tuple(int(v) for v in (at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius)))
    view = preprocess.view(image).convert("L")
    left, top, right, bottom = view.point(lambda value: 255 * (value > 100)).getbbox()
    place = in_view(preprocess, size, at)
    assert place == pytest.approx(((left + right) / 2 / view.width, (top + bottom) / 2 / view.height), abs=0.02)


def test_keypoints_land_where_the_plan_sends_their_cells(random_match):
    found = random_match((2, 2), (2, 2))
    points_q = {1: (0.1, 0.1), 2: (0.9, 0.9), 3: (0.1, 0.9)}
    points_g = {1: (0.9, 0.1), 2: (0.9, 0.9)}
    plan = torch.zeros(4, 4)
    plan[0, 1] = plan[3, 0] = 1  # 1 goes right, 2 to the cell that is farthest
    landed = keypoint_accuracy(plan, found, 0, points_q, points_g)
    assert landed is not None
    weight = found.weight_q[0].double()
    assert landed.mass == landed.strongest == pytest.approx(float(weight[0] / (weight[0] + weight[3])))
    assert landed.regions == 0.5
    assert landed.near == pytest.approx(1)  # in a grid of 2 x 2 every cell touches every other
    assert keypoint_accuracy(plan, found, 0, points_q, {7: (0.5, 0.5)}) is None
