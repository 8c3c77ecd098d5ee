"""Advice in sentences works: every flag and field that a string of the sources names exists."""

import ast
import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator

import pytest
from conftest import ROOT

from int_lm import __main__ as int_lm_command, programs
from int_lm.config import SECTIONS
from int_lm.config.load import REMOVED

FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w(?![\w.-]*\0)")
FIELD = re.compile(rf"(?<![\w.-])(?:{'|'.join(SECTIONS)})\.[a-z]\w*\b(?!\()")
ENTRIES = ("--section.field", "--help", "--version", "--verbose")
SOURCES = ("int_lm", "data", "tokenization", "train.py", "eval.py")
OTHER_PROGRAMS = {"int_lm/native/build.py"}  # whose strings are flags of compilers
OTHER_FLAGS = {"--local-dir", "--logdir", "--project"}  # of hf, tensorboard and trackio
OTHER_FLAGS |= {"--model", "--model_args", "--device", "--apply_chat_template"}  # of lm_eval


def strings(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of the strings of a program that are shown: all but docstrings.

    What stands in braces of an f-string is a gap.
    """
    tree = ast.parse(source)
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            hidden.add(node.value)
        if isinstance(node, ast.JoinedStr):
            parts = [x.value if isinstance(x, ast.Constant) else "\0" for x in node.values]
            hidden.update(node.values)
            yield node.lineno, "".join(map(str, parts))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in hidden:
            yield node.lineno, node.value


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """The flags of every command, as its parser shows them."""
    found = set(ENTRIES)
    for module, first, _ in int_lm_command.VERBS.values():
        if "native" in module:
            continue
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
            programs.load(module).main([*first, "--help"], program="int-lm")
        found.update(FLAG.findall(shown.getvalue()))
    return found


def wrong(text: str, flags: set[str]) -> list[str]:
    """The flags and fields in a text that do not exist."""
    fields = {
        f"{section}.{field.name}"
        for section, cls in SECTIONS.items()
        for field in dataclasses.fields(cls)
    }
    found = [flag for flag in FLAG.findall(text) if flag not in flags | OTHER_FLAGS]
    for field in FIELD.findall(FLAG.sub("", text)):
        file = ROOT / f"{field.replace('.', '/')}.py"  # `data.prepare` is a module
        suffix = field.rpartition(".")[2] in ("py", "yaml", "json", "md", "safetensors")
        if field not in (fields | set(REMOVED)) and not file.exists() and not suffix:
            found.append(field)
    return found


def test_strings_name_flags_and_fields_that_exist(flags: set[str]) -> None:
    """In every module of the library and its commands."""
    problems, seen = [], 0
    for name in SOURCES:
        for file in sorted((ROOT / name).rglob("*.py")) if "." not in name else [ROOT / name]:
            path = file.relative_to(ROOT).as_posix()
            if path in OTHER_PROGRAMS:
                continue
            for line, text in strings(file.read_text(encoding="utf-8")):
                seen += bool(FLAG.search(text) or FIELD.search(text))
                problems += [f"{path}, line {line}: {what}" for what in wrong(text, flags)]
    assert problems == []
    assert seen > 100


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("raise --character_coverages", ["--character_coverages"]),
        ("choose another --run.dir or --vocab_size", []),
        ("es.populatoin is 3; run.dir, data.prepare, run.py", ["es.populatoin"]),
        ("--data.nothing", ["--data.nothing"]),
    ],
)
def test_wrong_advice_is_found(text: str, found: list[str], flags: set[str]) -> None:
    """The test above can fail."""
    assert wrong(text, flags) == found
