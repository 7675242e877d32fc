import pytest

from diml.data.transforms import Preprocess
from diml.models import EmbedderConfig


@pytest.mark.parametrize("backbone", [0.5, None, "", ["resnet50"], {"name": "resnet50"}])
def test_the_backbone_is_a_name(backbone):
    with pytest.raises(ValueError, match="backbone: need the name of a network, got"):
        EmbedderConfig(backbone=backbone, preprocess=Preprocess(), dim=4)
