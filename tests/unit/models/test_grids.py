import pytest
import torch

from diml.models.grids import resize_grid


def naive(maps: torch.Tensor, grid: int) -> torch.Tensor:
    """Cell by cell, point by point, in Python numbers."""
    images, channels, height, width = maps.shape
    fine = grid * 4
    whole = height % grid == 0 and width % grid == 0
    rows, columns = (height, width) if whole else (fine, fine)
    out = torch.zeros(images, channels, grid, grid, dtype=maps.dtype)
    for n in range(images):
        for c in range(channels):
            for i in range(grid):
                for j in range(grid):
                    values = [
                        point(maps[n, c], y, x, rows, columns, whole)
                        for y in range(i * rows // grid, (i + 1) * rows // grid)
                        for x in range(j * columns // grid, (j + 1) * columns // grid)
                    ]
                    out[n, c, i, j] = sum(values) / len(values)
    return out


def point(plane: torch.Tensor, y: int, x: int, rows: int, columns: int, whole: bool) -> float:
    """A value of the plane, or of its bilinear enlargement to rows x columns with corners aligned."""
    if whole:
        return plane[y, x].item()
    height, width = plane.shape
    v, u = y * (height - 1) / (rows - 1), x * (width - 1) / (columns - 1)
    top, left = min(int(v), height - 1), min(int(u), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = plane[top, left].item() * (1 - (u - left)) + plane[top, right].item() * (u - left)
    lower = plane[bottom, left].item() * (1 - (u - left)) + plane[bottom, right].item() * (u - left)
    return upper * (1 - (v - top)) + lower * (v - top)


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(7, 7, 4), (7, 7, 7), (7, 7, 1), (6, 4, 2), (6, 4, 4), (5, 9, 3), (1, 1, 2), (7, 7, 10)],
)
def test_agrees_with_a_naive_loop(height, width, grid):
    maps = torch.randn(2, 2, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(resize_grid(maps, grid), naive(maps, grid))


@pytest.mark.parametrize("grid", range(1, 15))
@pytest.mark.parametrize("size", [(7, 7), (14, 14), (5, 8)])
def test_every_grid_gives_g_by_g_cells(grid, size):
    maps = torch.randn(1, 3, *size)
    resized = resize_grid(maps, grid)
    assert resized.shape == (1, 3, grid, grid)
    assert resized.dtype == maps.dtype
    constant = resize_grid(torch.full((1, 1, *size), 2.5), grid)
    torch.testing.assert_close(constant, torch.full((1, 1, grid, grid), 2.5))


def test_the_maps_own_grid_is_left_alone():
    maps = torch.randn(2, 3, 7, 7)
    assert resize_grid(maps, 7) is maps


def test_the_mean_of_a_dividing_grid_is_the_mean_of_the_map():
    maps = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(resize_grid(maps, 4).mean(dim=(2, 3)), maps.mean(dim=(2, 3)))


def test_gradients_flow():
    maps = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: resize_grid(m, 4), maps)


def test_turning_the_map_turns_the_grid():
    maps = torch.randn(1, 2, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(resize_grid(maps.transpose(2, 3), 4), resize_grid(maps, 4).transpose(2, 3))


@pytest.mark.parametrize("grid", [0, 15, -1])
def test_a_grid_out_of_range_is_refused(grid):
    with pytest.raises(ValueError, match=r"grid: need 1 to 14 .* got"):
        resize_grid(torch.randn(1, 2, 7, 7), grid)


@pytest.mark.parametrize("grid", [4.0, "4", True])
def test_a_grid_that_is_no_integer_is_refused(grid):
    with pytest.raises(TypeError, match="grid: need an integer"):
        resize_grid(torch.randn(1, 2, 7, 7), grid)


@pytest.mark.parametrize("shape", [(2, 7, 7), (1, 0, 7, 7), (1, 2, 0, 7)])
def test_maps_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="maps: need shape"):
        resize_grid(torch.zeros(shape), 4)


def test_integer_maps_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        resize_grid(torch.zeros(1, 2, 7, 7, dtype=torch.int64), 4)


def test_no_images_give_no_grids():
    assert resize_grid(torch.zeros(0, 3, 7, 7), 4).shape == (0, 3, 4, 4)
