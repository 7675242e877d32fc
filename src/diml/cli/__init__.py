"""The command line: one file per command; this one dispatches, and `errors` turns what goes wrong into one line."""

from __future__ import annotations

import contextlib
import difflib
import gc
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Final, NoReturn, Protocol

#: Command -> what it does, in one line. The module of its name has its class, `COMMAND`, or a function `parse` that
#: builds it from the words; only the module that is used is imported.
COMMANDS: Final = {
    "demo": "evaluate, explain and train on 400 real photos; no set-up needed",
    "explain": "compare two images and show which parts match: figure, interactive page, JSON",
    "evaluate": "retrieval metrics on a data set: plain ranking against structural re-ranking",
    "compare": "settings of the matcher against each other on a data set, paired by query",
    "tune": "choose the settings of the matcher on training classes, with the gain to expect",
    "report": "an evaluation as an interactive page: metrics, queries with their hits, worst first",
    "calibrate": "what a score means: a probability, and thresholds for a named false-accept rate",
    "faithfulness": "measure how faithful explanations are: additivity, deletion, correspondence, stability",
    "audit": "given where objects are: evidence from objects against backgrounds, right for the wrong reason",
    "embed": "regions of images in a file that numpy, pandas and others read: .npz or .parquet",
    "export-onnx": "a model as an ONNX file, for programs without torch, checked against torch",
    "index": "build and maintain a searchable index of images",
    "search": "find the most similar images of an index, with explanations",
    "duplicates": "copies of one photograph in an index: groups, a page to choose what to keep, CSV",
    "serve": "a local web page and JSON API to compare and search images",
    "train": "train an embedder with any baseline or structural objective",
    "train-matcher": "train a scorer of pairs on frozen regions: soft votes with dustbins, saved with the model",
    "sweep": "train combinations of settings over several seeds and tabulate the results",
    "push": "a run or a saved embedder to the Hugging Face hub, with a model card",
    "presets": "the authors' training configurations, by name",
    "datasets": "list the known data sets and check local copies",
    "doctor": "show versions, compiled kernel, threads, devices and cached assets",
}

_NAME_WIDTH: Final = max(map(len, COMMANDS)) + 2

#: New objects until Python looks for cycles; 700 by default.
_BETWEEN_COLLECTIONS: Final = 20_000

HELP: Final = """usage: diml COMMAND ...

Explainable image similarity: images are compared region by region, by optimal transport.

{commands}

`diml COMMAND --help` has options and examples. To begin with:

  diml demo
  diml explain A.jpg B.jpg --output why.png"""


class Command(Protocol):
    """What the dataclass of each command offers."""

    def run(self) -> int:
        """Do the work and print; returns the exit code."""
        ...


def process() -> NoReturn:
    """Run the command line as this process, and end it.

    Raises:
        SystemExit: always, with the exit code of `main`.
    """
    try:
        code = main()
    finally:
        # At the end Python looks for cycles among all that imports made: 2 of the 8 seconds of a search.
        gc.disable()
        gc.freeze()
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after `diml`; those of the process when omitted.

    Returns:
        Exit code (docs/errors.md): 0 done, 1 a check failed or images were left out, 2 an error (printed in one line),
        70 a bug (printed with its traceback), 130 interrupted by Ctrl-C, SIGTERM or SIGHUP.

    Raises:
        SystemExit: from the parser of a command: 0 after --help, 2 for wrong options.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:<{_NAME_WIDTH}}{about}" for name, about in COMMANDS.items())))
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
    # Imports make a million objects that stay: looking for cycles among them took an eighth of a short command.
    gc.set_threshold(_BETWEEN_COLLECTIONS)
    # Read when PyTorch is loaded, below. Threads that wait by spinning take the cores from those that they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from diml.allocator import keep_freed_memory
    from diml.cli import errors
    from diml.cli.parsing import option_names, parse_words
    from diml.cli.signals import stopping_like_ctrl_c

    warnings.formatwarning = lambda message, *_, **__: f"diml {name}: warning: {errors.one_line(str(message))}\n"
    _print_any_name()
    kind: type | None = None
    try:
        module = importlib.import_module(f"diml.cli.{name.replace('-', '_')}")
        command: Command
        # `parse` is of a command whose defaults depend on its own words.
        command = module.parse(words) if hasattr(module, "parse") else parse_words(module.COMMAND, name, words)
        kind = type(command)
        keep_freed_memory()
        with stopping_like_ctrl_c():
            return command.run()
    except BrokenPipeError:  # the reader of `diml ... | head` has exited
        sys.stderr.close()
        return errors.DONE
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be closed
            print(f"diml {name}: interrupted; every file that was finished is complete", file=sys.stderr)
        return errors.INTERRUPTED
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of Rust libraries are no Exception
        line = errors.explained(error)
        if line is None or os.environ.get("DIML_TRACEBACK"):
            print(errors.traceback_of(error), file=sys.stderr)
        told = line and errors.as_options(line, option_names(kind) if kind else {})
        print(f"diml {name}: {told or errors.bug_report(error)}", file=sys.stderr)
        return errors.BUG if line is None else errors.ERROR


def _print_any_name() -> None:
    """Let the output hold file names that are not in its encoding: their bytes are written out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
