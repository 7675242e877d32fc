import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diml.models.heads import HEADS, WhitenHead, build_head


def cells(count: int, channels: int = 12, *, seed: int = 0) -> torch.Tensor:
    """Unit vectors that share a direction, as deep features do."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.2, 1.5, channels, dtype=torch.float64)
    raw = 1 + spread * torch.randn(count, channels, generator=generator, dtype=torch.float64)
    return F.normalize(raw, dim=1)


def test_whitened_vectors_have_the_root_of_the_singular_values():
    head = WhitenHead(12, 5).double()
    vectors = cells(300)
    head.fit([vectors])
    singular = torch.linalg.svdvals(vectors)[:5]
    projected = head(vectors)
    torch.testing.assert_close(torch.linalg.svdvals(projected), singular.sqrt())
    torch.testing.assert_close(projected.T @ projected, torch.diag(singular), atol=1e-9, rtol=0)


def test_whitening_agrees_with_a_singular_value_decomposition():
    head = WhitenHead(12, 4).double()
    vectors = cells(80)
    head.fit([vectors])
    _, singular, directions = torch.linalg.svd(vectors, full_matrices=False)
    expected = vectors @ directions[:4].T / singular[:4].sqrt()
    signs = (expected * head(vectors)).sum(dim=0).sign()
    torch.testing.assert_close(head(vectors), expected * signs)


def test_blocks_and_lengths_do_not_matter_to_the_fit():
    vectors = cells(90)
    whole, blocks = WhitenHead(12, 6), WhitenHead(12, 6)
    whole.fit([vectors])
    blocks.fit(iter([3 * vectors[:40].float(), 0.1 * vectors[40:].float(), torch.zeros(5, 12)]))
    torch.testing.assert_close(blocks.weight, whole.weight, atol=1e-5, rtol=1e-4)


def test_a_blank_cell_stays_the_zero_vector():
    head = WhitenHead(12, 3)
    head.fit([cells(50)])
    assert torch.equal(head(torch.zeros(2, 12)), torch.zeros(2, 3))


def test_few_images_give_fewer_channels_and_say_so():
    head = WhitenHead(12, 8)
    with pytest.warns(UserWarning, match=r"span 3 directions, fewer than dim=8.*dim=3"):
        head.fit([cells(3)])
    assert head.dim == 3
    assert head(torch.randn(2, 12)).shape == (2, 3)


def test_an_unfitted_head_names_the_remedy():
    with pytest.raises(ValueError, match="fit_head"):
        WhitenHead(12, 3)(torch.randn(2, 12))


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (torch.zeros(4, 12), "other than zero"),
        (torch.full((4, 12), torch.nan), "finite"),
        (torch.randn(4, 11), r"\(n, 12\), got \(4, 11\)"),
        (torch.randn(12), r"got \(12,\)"),
    ],
)
def test_cells_that_cannot_be_fitted_on_are_refused(block, said):
    head = WhitenHead(12, 3)
    with pytest.raises(ValueError, match=said):
        head.fit([block])
    assert not head.fitted


def test_a_linear_head_is_a_convolution_of_one_cell():
    head = build_head("linear", 12, 5)
    convolution = nn.Conv2d(12, 5, 1)
    convolution.weight.data = head.weight.data[:, :, None, None]
    convolution.bias.data = head.bias.data
    maps = torch.randn(2, 12, 3, 4)
    embedded = head(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(embedded, convolution(maps), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_says_its_length(name):
    head = build_head(name, 12, 7)
    assert head.dim == (12 if name == "identity" else 7)


@pytest.mark.parametrize(
    ("name", "dim", "said"),
    [
        ("pca", 4, "head: need one of identity, linear, whiten, got 'pca'"),
        ("linear", 0, "dim: need an integer of at least 1, got 0"),
        ("linear", 1.5, "dim: need an integer"),
        ("whiten", 13, "at most the 12 channels"),
    ],
)
def test_heads_that_cannot_be_are_refused(name, dim, said):
    with pytest.raises(ValueError, match=said):
        build_head(name, 12, dim)
