"""Paths with `~` and variables, in YAML and in every flag; texts that begin with a dash."""

import dataclasses
from pathlib import Path

import pytest

import eval as eval_command
from int_lm import config
from int_lm.config import Config, command_line, paths
from int_lm.config.command_line import ConfigParser, OneLineParser
from int_lm.errors import UserError

MIXTURE = """
data:
  shards: ${PLACE}/shards
  tokenizer: ~/pieces
  mixture:
    - {name: a, source: text, path: [~/a.txt, $PLACE/b.txt]}
    - {name: b, source: hub, path: [$PLACE/c]}
run: {dir: $PLACE/run}
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "/somewhere")
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(*argv: str) -> Config:
    return ConfigParser().parse_config(argv)[1]


def test_paths_of_a_file_are_expanded(home: Path) -> None:
    """Of every source but names of datasets; what is kept beside a run has the places in full."""
    (home / "c.yaml").write_text(MIXTURE)
    read = parsed("--config", "~/c.yaml")
    assert read == config.load(home / "c.yaml")
    assert (read.run.dir, read.data.shards) == ("/somewhere/run", "/somewhere/shards")
    assert read.data.tokenizer == f"{home}/pieces"
    a, b = read.data.mixture
    assert a.path == (f"{home}/a.txt", "/somewhere/b.txt") and b.path == ("$PLACE/c",)


def test_paths_of_flags_are_expanded(home: Path) -> None:
    """Also where a shell does not: behind an equals sign."""
    read = parsed("--run.dir=~/run", "--data.path", "$PLACE/x", "~/y", "--data.tokenizer=~/t")
    assert read.run.dir == f"{home}/run" and read.data.tokenizer == f"{home}/t"
    assert read.data.path == ("/somewhere/x", f"{home}/y")
    found = eval_command.parse(["--run=~/run", "--text", "$PLACE/x", "y"])
    assert (found.run, found.text) == (f"{home}/run", ["/somewhere/x", "y"])
    assert eval_command.parse(["--run", "x", "--pairs=~/p"]).pairs == f"{home}/p"
    assert parsed("--reward.prompts=~/p").reward.prompts == f"{home}/p"
    from_python = command_line.overridden(Config(), {"run.dir": "~/run"}, "here")
    assert from_python.run.dir == f"{home}/run"


@pytest.mark.parametrize("path", ["a~b", "a/~", "costs 5$", "$(x)", "x"])
def test_other_paths_stay(path: str) -> None:
    """Without a tilde in front or the name of a variable there is nothing to expand."""
    assert paths.expanded(path, "it") == path


def test_a_file_that_is_called_so_is_meant(home: Path) -> None:
    """Nothing is expanded in the name of a file that exists."""
    for name in ("$NOWHERE.txt", "~x"):
        (home / name).touch()
        assert paths.expanded(name, "it") == name


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("$NOWHERE/x", r"run.dir is '\$NOWHERE/x', but \$NOWHERE is not set"),
        ("a/${NOWHERE}", r"but \$NOWHERE is not set; set it, or write the path in full"),
        ("~nobody-of-that-name/x", "write the path in full"),
    ],
)
def test_what_stands_for_nothing_is_refused(path: str, expected: str) -> None:
    """And no directory of that name is made."""
    with pytest.raises(UserError, match=expected):
        parsed("--run.dir", path)
    with pytest.raises(UserError, match=r"--run is"):
        eval_command.parse(["--run", path])


def test_every_field_that_names_files_is_expanded() -> None:
    """All fields of text do, but these."""
    others = {
        *("model.architecture", "es.objective", "es.votes", "es.readout", "es.update"),
        *(
            "es.fitness",
            "es.schedule",
            "es.noise",
            "data.source",
            "data.field",
            "data.subset",
            "data.split",
        ),
        *("data.revision", "run.init_hash", "run.saving_signals", "run.sample_prompt"),
        *("run.track", "control.env"),
        *("reward.name", "reward.stop", "distributed.coordinator", "distributed.update"),
    }
    of_text = {
        f"{name}.{field.name}"
        for name, section in config.SECTIONS.items()
        for field in dataclasses.fields(section)
        if "str" in str(field.type) or "Literal" in str(field.type)
    }
    assert others | paths.FIELDS == of_text and not others & paths.FIELDS


@pytest.mark.parametrize("text", ["-x", "- item", "--", "---", "-1", "-5e", "--- a/b", "-x=1"])
def test_a_text_may_begin_with_a_dash(text: str) -> None:
    """As a flag's only value, before other flags and at the end."""
    parser = OneLineParser()
    parser.add_argument("--prompt")
    parser.add_argument("--stop", action="append")
    parser.add_argument("--json", action="store_true")
    found = parser.parse_strict(["--prompt", text, "--json", "--stop", "a", "--stop", text])
    assert (found.prompt, found.json, found.stop) == (text, True, ["a", text])
    assert parsed("--run.sample_prompt", text).run.sample_prompt == text


@pytest.mark.parametrize("text", ["--json", "--jsn", "-h"])
def test_a_flag_in_place_of_a_text_is_a_mistake(text: str) -> None:
    """The sentence says how it is meant as a text."""
    parser = OneLineParser()
    parser.add_argument("--prompt")
    parser.add_argument("--json", action="store_true")
    with pytest.raises(UserError, match="expected one argument; .* is given as --prompt=TEXT"):
        parser.parse_strict(["--prompt", text])
    assert parser.parse_strict([f"--prompt={text}"]).prompt == text


def test_a_variable_that_is_not_set_in_yaml_is_told_by_its_field(home: Path) -> None:
    (home / "c.yaml").write_text("data: {path: $NOWHERE/x}")
    with pytest.raises(UserError, match=r"data.path in c.yaml is '\$NOWHERE/x'"):
        parsed("--config", "c.yaml")


def test_a_file_that_begins_with_a_dash_is_told(home: Path) -> None:
    (home / "-x.txt").touch()
    with pytest.raises(UserError, match=r"a file of that name is written ./-x.txt"):
        parsed("--data.path", "-x.txt")
