"""An embedder as one graph: torch.compile and torch.export, whose graphs know no values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diml.matching import Matcher, Regions
from diml.models import Embedder


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def same(found: Regions, expected: Regions) -> None:
    assert isinstance(found, Regions)
    assert found.grid == expected.grid
    torch.testing.assert_close(found.dense, expected.dense, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_forward_pass_compiles_into_one_graph(tiny):
    embedder = tiny("test_vit", head="linear", dim=8)
    compiled = torch.compile(embedder, backend="eager", fullgraph=True)
    same(compiled(images()), embedder(images()))
    torch._dynamo.reset()


def test_gradients_of_a_compiled_embedder_are_the_same():
    embedder = Embedder(nn.Conv2d(3, 5, 8, stride=8))
    weight = embedder.backbone.net.weight
    found = []
    for run in (embedder, torch.compile(embedder, backend="aot_eager")):
        weight.grad = None
        run(images()).dense[..., 0].sum().backward()
        found.append(weight.grad)
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-4)
    torch._dynamo.reset()


@torch.no_grad()
def test_masses_of_a_compiled_embedder_are_the_same(tiny):
    embedder = tiny("test_vit")
    compiled = torch.compile(embedder, backend="eager")
    torch.testing.assert_close(compiled(images(), masses=True).masses, embedder(images(), masses=True).masses)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:No complete tensor found in the group")  # torch's own, about constants
@torch.no_grad()
def test_it_is_exported_for_any_number_of_images_and_gives_regions(tiny, tmp_path):
    embedder = tiny("test_vit")
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(embedder, (images(),), dynamic_shapes={"images": {0: batch}})
    torch.export.save(program, tmp_path / "embedder.pt2")
    again = torch.export.load(tmp_path / "embedder.pt2").module()
    found = again(images(3))
    same(found, embedder(images(3)))
    assert len(Matcher().match(found, found)) == 3


def test_zero_and_extreme_vectors_are_handled_in_a_graph_as_outside():
    """In a graph the way is taken that holds for every length."""
    vectors = torch.tensor([[[0.0, 0.0]], [[3e-30, 4e-30]], [[3e30, 4e30]], [[3.0, 4.0]]])

    def unit(vectors: torch.Tensor) -> torch.Tensor:
        return Regions.normalized(vectors, vectors[:, 0]).dense

    compiled = torch.compile(unit, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(vectors), unit(vectors))
    torch._dynamo.reset()
