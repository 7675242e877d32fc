"""Draw the explanation picture of the README from two pictures of our own: `make docs`."""

import io
from pathlib import Path

from PIL import Image

import diml
from diml.explain import drawn_pair
from diml.files import whole_file

HERE = Path(__file__).parent


def main() -> None:
    """Write docs/why.png."""
    match = diml.match(*drawn_pair())
    drawn = io.BytesIO()
    match.draw(top=5).savefig(drawn)
    with whole_file(HERE / "why.png") as temporary, Image.open(drawn) as picture:
        picture.convert("RGB").quantize(192).save(temporary, optimize=True)  # a third of the size, to the eye the same
    print(HERE / "why.png")


if __name__ == "__main__":
    main()
