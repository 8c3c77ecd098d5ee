"""Values by name: ours, installed ones and code named in full, which only its user may let run."""

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugins.stochastic import STOCHASTIC

from int_lm import config, plugins
from int_lm.config import Config, command_line
from int_lm.errors import UserError
from int_lm.method import update
from int_lm.method.update import Update
from int_lm.method.update.carry import CARRY
from int_lm.model.architecture import Architecture

FULL = "plugins.stochastic:STOCHASTIC"


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """What is trusted: nothing at first, and nothing of it after the test."""
    names: set[str] = set()
    monkeypatch.setattr(plugins, "_trusted", names)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield names


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that adds two updates, one of them under a name of ours, and an objective."""

    def entry(name: str, value: str) -> importlib.metadata.EntryPoint:
        return importlib.metadata.EntryPoint(name, value, plugins.GROUP)

    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        assert group == "int_lm.plugins"
        return [
            entry("update.stochastic", FULL),
            entry("update.carry", FULL),
            entry("update.missing", "tests.plugins.nowhere:X"),
            entry("objective.other", FULL),
        ]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


def refused(kind: str, name: str, of: type = Update) -> str:
    """The sentence with which a name is refused."""
    with pytest.raises(UserError) as caught:
        plugins.resolve(kind, name, of)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_name_of_ours_is_of_its_kind() -> None:
    """Each is found, and is of its class."""
    for kind, known in plugins.BUILT_IN.items():
        assert set(known) <= set(plugins.names(kind))
    for name in plugins.BUILT_IN["update"]:
        assert isinstance(update.get(name), Update)
    for name in plugins.BUILT_IN["architecture"]:
        assert isinstance(plugins.resolve("architecture", name, Architecture), Architecture)


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        (
            "model",
            "architecture",
            "rwvk",
            "expected one of rwkv, egg; did you mean rwkv?, or module",
        ),
        (
            "es",
            "update",
            "cary",
            "expected one of threshold, carry, adaptive; did you mean carry?, or module",
        ),
        ("es", "votes", "units", "did you mean unit?, or module:name"),
        ("es", "objective", "zzz", "expected one of log_likelihood, reward, or module:name"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest(
    section: str, key: str, value: str, expected: str
) -> None:
    """Where it stands in a file or on the command line, before anything is imported."""
    with pytest.raises(UserError) as caught:
        config.from_dict({section: {key: value}}, "small.yaml")
    assert f"{section}.{key} in small.yaml is '{value}', " in str(caught.value)
    assert expected in str(caught.value)
    assert refused(plugins.FIELDS[f"{section}.{key}"], value)


@pytest.mark.parametrize("name", [":X", "module:", ":", "a:b:c", ".relative:X", "a b:c", "a.:b"])
def test_a_name_in_full_has_a_module_and_a_name(name: str) -> None:
    """Trusted or not, what has none is refused where it stands."""
    plugins.trust(name)
    with pytest.raises(UserError, match="in small.yaml is .*, expected module:name, as in my_pack"):
        config.from_dict({"es": {"update": name}}, "small.yaml")
    assert "expected module:name" in refused("update", name)


def test_code_is_run_only_if_the_user_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that was only read imports nothing; the sentence names --plugin."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere_update.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\nfrom plugins.stochastic import *\n"
    )
    name = "elsewhere_update:STOCHASTIC"
    config.from_dict({"es": {"update": name}})  # as a checkpoint's is read
    assert refused("update", name) == (
        f"the update {name} is code outside int_lm; if you trust it, add --plugin {name}"
    )
    assert not (tmp_path / "ran").exists()
    plugins.trust(name)
    assert plugins.resolve("update", name, Update) is STOCHASTIC
    assert (tmp_path / "ran").exists()
    del sys.modules["elsewhere_update"]


def test_trust_comes_from_flags_files_and_plugin(trusted: set[str], tmp_path: Path) -> None:
    """What the user wrote in a file or on the command line is trusted, name by name."""
    parser = command_line.ConfigParser()
    parser.parse_config(["--es.update", FULL])
    assert trusted == {FULL}
    trusted.clear()
    (tmp_path / "a.yaml").write_text(f"es: {{update: '{FULL}'}}\n")
    command_line.ConfigParser().parse_config(["--config", str(tmp_path / "a.yaml")])
    assert trusted == {FULL}
    trusted.clear()
    plugins.trust("carry", FULL)
    assert trusted == {FULL}, "names of ours need no trust"
    assert refused("update", "tests.plugins.stochastic:Update").endswith(":Update")
    assert update.get(FULL) is STOCHASTIC


def test_what_cannot_be_had_is_one_sentence() -> None:
    """Another class, no such module, no such attribute."""
    wrong, nowhere, without = (
        "tests.plugins.stochastic:FRACTION_BITS",
        "tests.plugins.nowhere:X",
        "tests.plugins.stochastic:NONE",
    )
    plugins.trust(wrong, nowhere, without, FULL)
    assert refused("update", wrong) == f"the update {wrong} is of type int, expected Update"
    assert refused("architecture", FULL, Architecture).endswith(
        "is of type Update, expected Architecture"
    )
    assert (
        "cannot be imported from tests.plugins.nowhere (ModuleNotFoundError: No module"
        in refused("update", nowhere)
    )
    assert refused("update", without).endswith(": tests.plugins.stochastic has no NONE")


def test_an_error_inside_of_a_plugin_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a module raises when it is imported; the exception and the module are named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faulty_update.py").write_text("UPDATE = (1).value\n")
    plugins.trust("faulty_update:UPDATE")
    (tmp_path / "leaving_update.py").write_text("import sys\nsys.exit('enough')\n")
    plugins.trust("leaving_update:UPDATE")
    where = "the update {0}_update:UPDATE cannot be imported from {0}_update "
    assert refused("update", "faulty_update:UPDATE") == (
        where.format("faulty") + "(AttributeError: 'int' object has no attribute 'value'); mend it"
    )
    assert refused("update", "leaving_update:UPDATE") == (
        where.format("leaving") + "(SystemExit: enough); mend it"
    )


@pytest.mark.usefixtures("installed")
def test_what_is_installed_is_found_by_its_name() -> None:
    """An installed package is trusted; names of ours stay ours; other kinds' are not found."""
    assert plugins.names("update") == ["threshold", "carry", "adaptive", "missing", "stochastic"]
    assert update.get("stochastic") is STOCHASTIC
    assert update.get("carry") is CARRY
    assert config.from_dict({"es": {"update": "stochastic"}}) != Config()
    assert "did you mean stochastic?" in refused("update", "stochastc")
    assert "expected one of" in refused("update", "other")
    assert "{threshold,carry,adaptive,missing,stochastic,module:name}" in help_text()
    assert "the update missing cannot be imported from tests.plugins.nowhere" in refused(
        "update", "missing"
    )


def help_text() -> str:
    """What --help says, in one line."""
    parser = command_line.OneLineParser(prog="program")
    command_line.add_config_arguments(parser)
    return "".join(parser.format_help().split())
