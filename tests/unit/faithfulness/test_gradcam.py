"""Grad-CAM against its formula, and the error where the library is missing."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from diml.faithfulness import Measures
from diml.faithfulness.gradcam import grad_cam_credit
from diml.matching import Regions
from diml.models import load_embedder


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(4))


def test_a_missing_library_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"diml\[faithfulness\].*--no-grad-cam"):
        Measures()
    assert not Measures(grad_cam=False).grad_cam


def test_heat_is_the_formula_of_the_paper(tiny, images):
    """relu(sum over channels of mean gradient x map), up to the library's scaling and up-sampling."""
    pytest.importorskip("pytorch_grad_cam", reason="pip install 'diml[faithfulness]'")
    with torch.no_grad():
        gallery = tiny(images.flip(0))
    credit = grad_cam_credit(tiny, images, gallery, (3, 3))
    maps = tiny.backbone(images).maps.detach().requires_grad_(True)
    pooled = F.normalize(maps.mean(dim=(2, 3)), dim=1)
    (pooled * gallery.pooled).sum().backward()
    heat = (maps.grad.mean(dim=(2, 3), keepdim=True) * maps).sum(1).relu().detach()
    assert heat.shape[1:] == (2, 2)
    for pair in range(2):
        scaled = (heat[pair] - heat[pair].min()) / (heat[pair].max() - heat[pair].min() + 1e-7)
        finest = F.interpolate(scaled[None, None], size=(48, 48), mode="bilinear")
        expected = F.adaptive_avg_pool2d(finest, 3).flatten()
        assert credit[pair] == pytest.approx(expected.numpy(), abs=0.02)
    assert all(weight.grad is None for weight in tiny.parameters())


def test_networks_without_a_layer_of_maps_raise():
    pytest.importorskip("pytorch_grad_cam", reason="pip install 'diml[faithfulness]'")
    embedder = load_embedder("test_vit", pretrained=False, grid=2)
    size = embedder.preprocess.size
    images = torch.zeros(1, 3, size, size)
    gallery = Regions.normalized(torch.ones(1, 4, embedder.dim), torch.ones(1, embedder.dim))
    with pytest.raises(ValueError, match="grad_cam: no layer of 'test_vit'"):
        grad_cam_credit(embedder, images, gallery, (2, 2))
