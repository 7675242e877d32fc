"""The command line: one file a command; this one chooses the command and turns errors of users into one line."""

from __future__ import annotations

import difflib
import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Final, Protocol

#: Command -> what it does, in one line. Its class is in the module of its name; only the one that is used is imported.
COMMANDS: Final = {
    "demo": "the whole thing on real photos, no question asked",
    "explain": "which part of a image matches which part of another: a page, a image, JSON",
    "evaluate": "retrieval on a data set: plain ranking against structural re-ranking",
    "report": "an evaluation as a page: metrics, and queries with hits and explanations, worst first",
    "faithfulness": "how far explanations can be trusted: sums, deletion, correspondence, stability",
    "index": "an index of images to search: build, bring up to date, look after",
    "search": "the images of an index most alike to one, each with the reason; or all pairs alike",
    "serve": "a page on this machine: drop two images to compare, or one to search a folder",
    "train": "train an embedder: every baseline, and with structural matching",
    "sweep": "a grid of trainings over seeds from one file, and one table of results",
    "presets": "the runs of the authors, by name",
    "datasets": "the known data sets, what is found of them, whether they are whole",
    "doctor": "what is in use here: versions, compiled kernel, threads, devices, assets",
}

HELP: Final = """usage: diml VERB ...

Image similarity that can be read: images compared part by part, with the parts that match.

{commands}

`diml VERB --help` has options and examples. To begin with:

  diml demo
  diml explain A.jpg B.jpg --output why.png"""


class Command(Protocol):
    """What each command's dataclass offers."""

    def run(self) -> int:
        """Do the work and print; returns the exit code."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after `diml`; those of the process when omitted.

    Returns:
        Exit code: 0 done, 1 a check failed, 2 an error of use (told in one line), 130 stopped by Ctrl-C.

    Raises:
        SystemExit: from the parser of a command: 0 after --help, 2 for wrong options.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {command:<13}{about}" for command, about in COMMANDS.items())))
        return 0 if words else 2
    if words[0] == "--version":
        from diml import __version__

        print(f"diml {__version__}")
        return 0
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        print(f"diml: no command {words[0]!r}; {hint}there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return _run(words[0], words[1:])


def _run(name: str, words: list[str]) -> int:
    import tyro

    from diml.allocator import keep_freed_memory

    module = importlib.import_module(f"diml.cli.{name}")
    warnings.formatwarning = lambda message, *_, **__: f"diml {name}: warning: {message}\n"
    try:
        command: Command
        if hasattr(module, "parse"):  # a command whose defaults come from its own words
            command = module.parse(words)
        else:
            kind = getattr(module, name.capitalize())
            command = tyro.cli(kind, prog=f"diml {name}", args=words, config=(tyro.conf.FlagCreatePairsOff,))
        keep_freed_memory()
        return command.run()
    except BrokenPipeError:  # the reader of `diml ... | head` has gone
        sys.stderr.close()
        return 0
    except (ValueError, OSError) as error:
        print(f"diml {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"diml {name}: stopped; every file that was finished is whole", file=sys.stderr)
        return 130
