"""Multi-similarity mining: the pairs of the library's miner, found without sorting.

Legend: N images, Q and G images on the two sides, P pairs.
"""

from __future__ import annotations

from pytorch_metric_learning import miners
from torch import Tensor

#: Anchor and positive (P,), anchor and negative (P,), as rows of the two sides.
Pairs = tuple[Tensor, Tensor, Tensor, Tensor]


class MultiSimilarityMiner(miners.MultiSimilarityMiner):  # type: ignore[misc]  # the library has no types
    """Positives less alike than the hardest negative + `epsilon`, negatives more alike than the hardest positive - it.

    The same pairs as the library's class, which sorts each row where its extremes are enough: half of its time. They
    come by row and column rather than by row and similarity, which no loss minds. Distances are left to the library.
    Source: Wang, Han, Huang, Dong, Scott, CVPR 2019, section 4.

    Example:
        >>> pairs = MultiSimilarityMiner(0.1, distance=StructuralSimilarity(16))(pack_regions(regions), labels)
    """

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Pairs:
        """Called by the library without gradient; see the class."""
        if not self.distance.is_inverted or len(ref_emb) == 0:
            pairs: Pairs = super().mine(embeddings, labels, ref_emb, ref_labels)
            return pairs
        similarity = self.distance(embeddings, ref_emb)  # (Q, G)
        positive = labels.unsqueeze(1) == ref_labels
        negative = ~positive
        if ref_emb is embeddings:
            positive.fill_diagonal_(False)
        weakest = similarity.masked_fill(~positive, float("inf")).amin(dim=1, keepdim=True)
        strongest = similarity.masked_fill(~negative, -float("inf")).amax(dim=1, keepdim=True)
        positive &= similarity - self.epsilon < strongest
        negative &= similarity + self.epsilon > weakest
        (anchors_p, p), (anchors_n, n) = (mask.nonzero(as_tuple=True) for mask in (positive, negative))
        return anchors_p, p, anchors_n, n
