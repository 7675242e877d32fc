"""What is measured, and how finely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from diml.explain.explanation import Plan
from diml.faithfulness.gradcam import check_grad_cam
from diml.faithfulness.ledgers import LEDGERS
from diml.faithfulness.occlusion import OCCLUSIONS
from diml.faithfulness.warps import WARPS

#: How regions of the gallery image are removed.
Removal = Literal["shuffle", "blur"]

#: Steps of deletion and insertion; more than the regions of an image are a mistake.
MOST_STEPS: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured, and how finely.

    Args:
        warps: kinds of warps for the correspondence, of `diml.faithfulness.warps.WARPS`.
        steps: of the curves of deletion and insertion.
        top: number of largest entries compared by the stability.
        grad_cam: whether to delete in the order of Grad-CAM as well.
        ledgers: kinds of ledgers that deletion and insertion test, of `diml.faithfulness.ledgers.LEDGERS`; "parts" also
            for the measures of parts.
        plan: of these ledgers: "exact", which explanations show by default, or "scored", which ranks. The scores that
            are recorded are those that rank.
        controls: whether to delete and insert by orders of the same spatial structure as well (see `controls`).
        interaction: whether to delete and insert matched regions of both images together (see `interaction`).
        gallery_removal: how these are removed from the gallery image: "shuffle" its pixels, which then resemble nothing
            in the blurred query, or "blur". Blurred regions of two images resemble each other.
        occlusions: kinds under which unmatched mass is measured, of `diml.faithfulness.occlusion.OCCLUSIONS`.
        seed: of warps, noise, random orders and controls.

    Raises:
        ValueError: a number is out of range, a name is unknown, or the library for Grad-CAM is missing.
    """

    warps: tuple[str, ...] = tuple(WARPS)
    steps: int = 6
    top: int = 8
    grad_cam: bool = True
    ledgers: tuple[str, ...] = ("credit", "parts")
    plan: Plan = "exact"
    controls: bool = True
    interaction: bool = True
    gallery_removal: Removal = "shuffle"
    occlusions: tuple[str, ...] = ("border", "clutter")
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: need at least 1, got {getattr(self, name)}")
        if self.steps > MOST_STEPS:
            raise ValueError(
                f"steps: need at most {MOST_STEPS}, got {self.steps}; an image has fewer regions than that"
            )
        for name, known in (("warps", WARPS), ("ledgers", LEDGERS), ("occlusions", OCCLUSIONS)):
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown:
                raise ValueError(f"{name}: need some of {', '.join(known)}, got {', '.join(unknown)}")
        for name, choice in (("gallery_removal", Removal), ("plan", Plan)):
            if getattr(self, name) not in get_args(choice):
                raise ValueError(f"{name}: need one of {', '.join(get_args(choice))}, got {getattr(self, name)!r}")
        if not self.ledgers:
            raise ValueError(f"ledgers: need at least one of {', '.join(LEDGERS)}, got none")
        if self.grad_cam:
            check_grad_cam()

    @property
    def of_parts(self) -> bool:
        """Whether a ledger of parts is measured."""
        return any(LEDGERS[name].of_parts for name in self.ledgers)
