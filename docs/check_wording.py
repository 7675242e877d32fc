"""Find words that this project does not use, with the field's word for each: one word for one thing (`make check`).

python docs/check_wording.py [FILE ...]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHERE = ("src/diml", "csrc", "tests", "benchmarks", "docs", "examples", "README.md", "CONTRIBUTING.md", "Makefile")
#: Files that use names from before they were changed, to compare with recorded numbers or to test that they are gone.
EXCEPT = {
    *("tests/reference/number_cases.py", "tests/reference/number_runs.py"),
    "tests/reference/record_numbers.py",
    *("tests/unit/test_architecture.py", "tests/unit/test_public_names.py", "docs/check_wording.py"),
}
ENDINGS = {".py", ".js", ".css", ".html", ".md", ".hpp", ".cpp", ".yaml", ""}

#: Pattern (any case, whole words) -> what to write instead.
WORDS = {
    r"pictures?": "image; a drawn result is a figure",
    r"verbs?": "command",
    r"rooms?": "package; memory: workspace, buffer",
    r"mend(?:s|ed|ing)?": "fix, repair, correct",
    r"marginals": "weights (marginal error stays)",
    r"likest": "most similar",
    r"by way of": "by, through; by way of torch: in torch",
    r"whole or absent": "atomic",
    r"hardly ever": "rarely",
    r"by chance": "randomly (chance level: `at chance`)",
    r"no question asked": "no interaction needed",
    r"(?:page|pages) to touch|one can touch|to touch, sort": "interactive page",
    r"can be read: ": "explainable",
    r"never loses its way": "certain to converge",
    r"more does not go faster|more is not faster": "no further speed-up",
    r"too good": "biased upwards",
    r"no one's neighbou?r|nobody's neighbou?r": "hub, anti-hub: say what is meant",
    r"ends? with code": "exits with status",
    r"leave (?:it |--[a-z-]+ )away": "omit",
    r"take stock|takes stock": "inspect, list",
    r"look(?:s)? after": "maintain",
    r"goes without saying|of its own accord|comes to grief": "plain words",
    r"so many (?:iterations|pairs|queries|images|times|are|values|ranks|rows|bytes|processes)": "that many",
    r"unfinished pairs?": "unconverged pairs",
    r"touch it": "interact",
    r"at one go|in one go": "together",
    r"is not there": "is missing",
    r"(?:equal |same |identical )?to the bit": "bit-identical",
    r"(?:can|may|could|to) be had": "is available",
    r"thousand million": "billion",
    r"a (?:image|index|embedder|explanation|evaluation|objective|anchor|epoch|array|interactive)": "an ...",
    r"data bases?": "database",
    r"least\.\.most": "minimum..maximum",
    r"in turns": "alternating",
    r"as (?:un)?like as can be": "as (dis)similar as possible",
    r"out of the question": "infeasible",
    r"own readings?": "own interpretation",
    r"drawn as if": "pseudo-random",
    r"loses? (?:its|their) way": "diverge; converge slowly",
    r"(?-i:Team|IndexSets|ScoreRoom|DistanceMiner|SofthardMiner)": "ProcessGroup, QueryGallerySplit, ...",
}
PATTERN = re.compile(rf"\b(?:{'|'.join(f'(?P<w{i}>{word})' for i, word in enumerate(WORDS))})\b", re.IGNORECASE)
REMEDIES = list(WORDS.values())


def faults(file: Path) -> list[str]:
    """A line for each word of the list in one file."""
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        for match in PATTERN.finditer(line.replace("_", " ")):
            remedy = REMEDIES[int((match.lastgroup or "w0")[1:])]
            found.append(f"{file.relative_to(ROOT)}:{number}: {match.group(0)!r}: {remedy}")
    return found


def main(words: list[str]) -> int:
    """Check the files that are named, or all; 1 where a word was found."""
    listed = [Path(word).resolve() for word in words]
    for place in (ROOT / where for where in WHERE if not words):
        listed += [place] if place.is_file() else sorted(place.rglob("*")) if place.is_dir() else []
    excepted = {ROOT / name for name in EXCEPT}
    files = [file for file in listed if file.is_file() and file.suffix in ENDINGS and file not in excepted]
    found = [line for file in files for line in faults(file)]
    print("\n".join(found) or f"wording: {len(files)} files, nothing to change")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
