"""`diml push`: a run or a saved embedder to the Hugging Face hub, with a model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class PushCommand:
    """Push a run or a saved embedder to the Hugging Face hub, with a generated model card: what it is, how to load it,
    its settings, and for a run its training and test results. `--model hf-hub:OWNER/NAME` of every command then uses
    it.

    The token with write access is that of HF_TOKEN, or the one that is stored on this machine.

    For instance:

    diml push runs/mine me/groceries --dry-run card, to look at card/README.md first

    diml push runs/mine me/groceries --private --license mit

    diml evaluate orl --model hf-hub:me/groceries
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder of a run or of a saved embedder. Where it has a README.md, that is the card."""

    repo_id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """Its name on the hub; created where it does not exist. Files of an earlier push are replaced."""

    private: bool = False
    """Create it such that only the owner can see it."""

    license: str | None = None
    """Licence for the card, an identifier of the hub such as mit or apache-2.0; by default the card names none."""

    dry_run: Path | None = None
    """Write what would be pushed into this folder, new or empty, and push nothing. A card that was edited there is used
    by: diml push FOLDER OWNER/NAME"""

    def run(self) -> int:
        """Push, or write the folder."""
        from diml.models import load_embedder
        from diml.models.published import check_repository, push, require_saved, write_publication

        check_repository(self.repo_id)  # known before the work, not after
        require_saved(self.model)
        embedder = load_embedder(self.model)
        if self.dry_run is not None:
            write_publication(self.dry_run, embedder, self.repo_id, source=self.model, licence=self.license)
            print(f"Written: {self.dry_run}; nothing was pushed")
            return 0
        address = push(embedder, self.repo_id, source=self.model, private=self.private, licence=self.license)
        print(f"Pushed: {address}")
        print(f"Load it with: diml.load_embedder('hf-hub:{self.repo_id}')")
        return 0


COMMAND = PushCommand
