"""`diml index copy`: an index to another place or database, without embedding anything."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class CopyCommand:
    """Copy an index to another place or another database: between a folder of LanceDB, a folder of Milvus Lite and a
    Milvus server. Settings, rows and calibration are copied; nothing is embedded. Every row of the copy is read back
    and compared with the original before the copy gets its name; until then, and after Ctrl-C, nothing is there. The
    source is only read.

    For instance:

    diml index copy photos.index photos.db

    diml index copy photos.index http://127.0.0.1:19530/photos

    diml index copy "http://127.0.0.1:19530/photos" /backup/photos.index
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The index to be copied: a folder; `NAME.db` (Milvus Lite); `http://host:port/NAME` (Milvus)."""

    destination: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DESTINATION")]
    """The place of the copy, as for SOURCE; nothing may be there yet."""

    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        """Copy the index and print what was copied and checked."""
        from diml.search.copying import copy_index

        report = copy_index(self.source, self.destination, progress=True)
        if self.json:
            print(json_format.dumps(asdict(report), indent=1))
            return 0
        kept = "".join(f" and {name}" for name in report.texts)
        print(
            f"{self.destination}: {report.rows:,} images{kept} copied; every row is as in the original, and "
            f"{report.queries} searches agree to {report.difference:.0e}"
        )
        return 0
