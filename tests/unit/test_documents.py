"""JSON and YAML read within bounds, and values of any size in messages."""

from __future__ import annotations

import ast
import itertools
import json
import time
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from diml.documents import DEEPEST, LARGEST_YAML, MOST_VALUES, parse_json, parse_yaml, read_json, read_yaml
from diml.spelling import did_you_mean, shown

NINE = "abcdefghi"
SEQUENCES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]\n" for before, after in itertools.pairwise(NINE)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{after}: &{after} {{<<: [{','.join([f'*{before}'] * 9)}]}}\n" for before, after in itertools.pairwise(NINE)
)
KEYS = "a: &a {x: 1}\n" + "".join(f"b{number}: &b{number} {{? *a : *a}}\n" for number in range(3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SEQUENCES, "values, aliases expanded"),
        (MERGES, "values, aliases expanded"),
        (KEYS, "unhashable"),
        ("a: &a [*a]", "an alias inside of what it stands for"),
        ("a: &a {b: *a}", "an alias inside of what it stands for"),
        ("[" * 500, "nested more than 50 deep"),
        ("- " * 5_000, "nested more than 50 deep"),
        ("{a: " * 5_000, "nested more than 50 deep"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' stands twice"),
        ("9" * 5_000, "4300 digits"),
        ("a: 2024-99-99", "month must be in 1..12"),
        ("!!timestamp soon", "NoneType"),
        ("!!bool perhaps", "perhaps"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        (b"\xff\xfe\xfa", "not readable as YAML"),
        ("\x00", "not readable as YAML"),
        ("%YAML 9.9\n---\na", "version 1"),
    ],
)
def test_yaml_that_is_hostile_or_wrong_is_one_short_line(text, message):
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"^mine\.yaml: not readable as YAML") as caught:
        parse_yaml(text, "mine.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert peak < 50e6


TAGS = (
    "python/object/apply:os.system [touch {mark}]",
    "python/object/new:os.system [touch {mark}]",
    "python/object:subprocess.Popen {args: [touch, {mark}]}",
    "python/object/apply:subprocess.check_output [[touch, {mark}]]",
    'python/object/apply:eval [\'open("{mark}", "w")\']',
    'python/object/apply:builtins.exec [\'open("{mark}", "w")\']',
    "python/object/new:type {args: [x, [], {}], state: {}}",
    "python/name:os.system ''",
    "python/module:antigravity ''",
    "python/tuple [1, 2]",
    "python/complex 1+2j",
    "python/bytes aGk=",
    "python/none ''",
    "python/dict {a: 1}",
    "ruby/object:Gem {}",
    "js/function 'function(){}'",
)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("form", ["!!{}", "a: !!{}", "- !!{}", "? !!{}\n: b"])
def test_no_yaml_tag_runs_code_or_builds_an_object(tag, form, tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(ValueError, match="not readable as YAML"):
        parse_yaml(form.format(tag.replace("{mark}", str(mark))), "mine.yaml")
    assert not mark.exists()


def test_ordinary_yaml_reads_as_pyyaml_reads_it():
    text = "base: &base {lr: 1e-3, model: x}\nruns:\n  a: {<<: *base, lr: 0.5}\n  b: *base\nseeds: [0, 1]\n"
    assert parse_yaml(text, "a") == yaml.safe_load(text)
    assert parse_yaml("", "a") is None


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_what_was_written_is_read_back(value):
    assert parse_json(json.dumps(value), "a") == value
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True), "a") == value


@given(st.text() | st.binary())
def test_any_text_gives_plain_values_or_a_value_error(text):
    for parse in (parse_json, parse_yaml):
        try:
            parse(text, "a")
        except ValueError as error:
            assert str(error).startswith("a: not readable as")  # noqa: PT017


def test_limits_are_those_that_the_messages_state(tmp_path):
    assert parse_yaml("[" * DEEPEST + "]" * DEEPEST, "a") is not None
    assert len(parse_yaml("[" + "x," * (MOST_VALUES - 1) + "]", "a")) == MOST_VALUES - 1
    (tmp_path / "big.yaml").write_text("#" * (LARGEST_YAML + 1))
    with pytest.raises(ValueError, match=r"big\.yaml: need at most 1,048,576 bytes, got more"):
        read_yaml(tmp_path / "big.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "nested too deeply"), ("{", "Expecting"), (b"\xff", "decode"), ("", "Expecting value")],
)
def test_json_that_cannot_be_read_is_named(text, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"a\.json: not readable as JSON .*{message}"):
        read_json(path)


def test_nothing_else_parses_json_or_yaml():
    """So that every document is read within these bounds."""
    package = Path(__file__).resolve().parents[2] / "src" / "diml"
    calls = {"load", "loads", "safe_load", "full_load", "unsafe_load", "load_all", "safe_load_all", "JSONDecoder"}
    found = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            words = ast.unparse(node).split("(") if isinstance(node, ast.Call) else [""]
            module, _, called = words[0].partition(".")
            of_own_text = len(words) > 1 and words[1].endswith("dumps")  # to make values plain
            if module in ("json", "yaml", "json_format") and called in calls and not of_own_text:
                found.add(f"{file.relative_to(package)}: {words[0]}")
    assert found - {"files.py: json.loads"} == {"documents.py: json.loads", "documents.py: yaml.load"}


@pytest.mark.parametrize(
    "value",
    [
        lambda: "x" * 10**7,
        lambda: ["x" * 100] * 10**6,
        lambda: 10**5000,
        lambda: {"a": [[[[[["x"]]]]]]},
        lambda: b"x" * 10**7,
        lambda: {str(number): number for number in range(10**5)},
    ],
    ids=["text", "list", "number", "nested", "bytes", "mapping"],
)
def test_values_in_messages_are_cut(value):
    assert len(shown(value())) < 1000


def test_short_values_are_shown_whole():
    for value in ("abc", 3, 0.5, ["a", "b"], {"a": 1}, None, True):
        assert shown(value) == repr(value)


def test_a_misspelt_word_of_any_length_costs_nothing():
    start = time.perf_counter()
    assert "Known" in did_you_mean("x" * 10**6, ["cub", "cars"])
    assert time.perf_counter() - start < 1
