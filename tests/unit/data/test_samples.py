from collections import Counter

from PIL import Image

import diml


def test_six_products_with_two_photos_each_beside_each_other():
    paths = diml.sample_images()
    products = [path.parent.name for path in paths]
    assert products == sorted(products)
    assert set(Counter(products).values()) == {2}
    assert len(paths) == 12


def test_they_are_small_readable_and_licensed():
    paths = diml.sample_images()
    assert sum(path.stat().st_size for path in paths) <= 300_000
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) == 256
    assert (paths[0].parents[1] / "LICENSE.txt").read_text().startswith("MIT License")
