"""Configuration and command line: what is read, what is refused, and in which words."""

import dataclasses
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, strategies as st

from int_lm import config, limits, resume
from int_lm.config import (
    Config,
    ControlConfig,
    DataConfig,
    DistributedConfig,
    EsConfig,
    ModelConfig,
    RewardConfig,
    RunConfig,
    command_line,
)
from int_lm.config.load import REMOVED
from int_lm.errors import UserError
from int_lm.method import recipe
from int_lm.training import cautions
from tests import presets

ROOT = Path(__file__).resolve().parent.parent
RunCommand = Callable[..., subprocess.CompletedProcess[str]]
SECTIONS = {
    "model": ModelConfig,
    "es": EsConfig,
    "data": DataConfig,
    "run": RunConfig,
    "reward": RewardConfig,
    "control": ControlConfig,
    "distributed": DistributedConfig,
}
FLAGS = [
    f"{name}.{field.name}" for name in SECTIONS for field in dataclasses.fields(SECTIONS[name])
]


def parser() -> command_line.OneLineParser:
    """A parser with the flags of a configuration, and nothing else."""
    made = command_line.OneLineParser(prog="program")
    command_line.add_config_arguments(made)
    return made


def parse(*argv: str) -> Config:
    """The configuration that a command line describes, not validated."""
    return command_line.from_arguments(parser().parse_strict(argv))


def write(folder: Path, text: str) -> str:
    """A YAML file with `text`."""
    file = folder / "small.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def refused(expected: str, action: Callable[..., object], *arguments: object) -> str:
    """The message with which `action` refuses; it must be one line and contain `expected`."""
    with pytest.raises(UserError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    return message


def with_fields(**changes: object) -> Config:
    """The paper's configuration with `section__field` replaced."""
    tree = config.to_dict(Config(model=presets.egg(), es=presets.paper_es()))
    for name, value in changes.items():
        section, key = name.split("__")
        tree[section][key] = value
    return config.from_dict(tree)


def test_defaults_are_valid() -> None:
    """The configuration that names nothing can be trained, and is the same from YAML and flags."""
    assert config.validate(Config()) == config.from_dict({}) == parse()
    recipe.check(Config())


def test_the_defaults_are_the_recommended_recipe() -> None:
    """Field by field; and configs/quickstart.yaml says of the method nothing else."""
    recommended = EsConfig(
        population=512,
        segment_length=16,
        members_per_stream=2,
        rank=1,
        sigma_shift=3,
        noise="rademacher",
        objective="log_likelihood",
        votes="unit",
        readout="exact",
        update="carry",
        learning_rate=0.5,
        learning_rate_halflife=200.0,
        schedule="inverse_sqrt_to_zero",
    )
    quickstart = config.load(ROOT / "configs" / "quickstart.yaml")
    assert EsConfig() == recommended == quickstart.es
    assert ModelConfig().architecture == quickstart.model.architecture == "rwkv"


# Options of older versions

WITHOUT_EFFECT = {"noise_reuse": 1, "vote_clip": 0.0}


def test_options_that_were_removed_are_read_where_they_changed_nothing(tmp_path: Path) -> None:
    """As an older version's file or checkpoint has them; nothing of them is left."""
    assert {f"es.{name}": value for name, value in WITHOUT_EFFECT.items()} == REMOVED
    tree = config.to_dict(Config())
    tree["es"] |= WITHOUT_EFFECT
    assert config.from_dict(tree) == Config()
    assert config.load(write(tmp_path, yaml.safe_dump(tree))) == Config()
    assert not REMOVED.keys() & set(FLAGS)


@pytest.mark.parametrize(
    ("name", "value"), [("noise_reuse", 4), ("noise_reuse", 0), ("vote_clip", 2.0)]
)
def test_options_that_were_removed_are_refused_where_they_mattered(
    tmp_path: Path, name: str, value: object
) -> None:
    """One sentence with the option, its value, the file, and what to do."""
    file = write(tmp_path, f"es: {{{name}: {value}}}\n")
    message = refused(
        f"es.{name} in {file} is {value}, an option that was removed", config.load, file
    )
    assert message.endswith("drop it, or use version 0.1.0")
    refused(f"unknown argument --es.{name}", parse, f"--es.{name}", str(value))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  widht: 3\n", "unknown key model.widht in {file}; did you mean width?"),
        ("run:\n  zzzz: 3\n", "unknown key run.zzzz in {file}; known: dir, steps"),
        ("modle:\n  width: 3\n", "unknown section 'modle' in {file}; did you mean model?"),
        (
            "7: 3\n",
            "unknown section 7 in {file}; "
            "known: model, es, data, run, reward, control, distributed",
        ),
        (
            "- model\n",
            "{file} must be a mapping of sections "
            "(model, es, data, run, reward, control, distributed)",
        ),
        ("model: 3\n", "section model in {file} must be a mapping"),
        (
            "model:\n  width: wide\n",
            "model.width in {file} is 'wide', expected a value of type int",
        ),
        ("model:\n  width: 64.0\n", "model.width in {file} is 64.0, expected a value of type int"),
        ("model:\n  width: true\n", "model.width in {file} is True, expected a value of type int"),
        ("model:\n  width:\n", "model.width in {file} is None, expected a value of type int"),
        ("model:\n  width: [64]\n", "model.width in {file} is [64], expected a value of type int"),
        ("es:\n  pooled: maybe\n", "es.pooled in {file} is 'maybe', expected true or false"),
        ("es:\n  pooled: 1\n", "es.pooled in {file} is 1, expected true or false"),
        ("es:\n  alpha: true\n", "es.alpha in {file} is True, expected a value of type float"),
        ("es:\n  alpha: much\n", "es.alpha in {file} is 'much', expected a value of type float"),
        ("es:\n  alpha: .nan\n", "es.alpha in {file} is nan, expected a finite number"),
        ("es:\n  alpha: inf\n", "es.alpha in {file} is inf, expected a finite number"),
        ("run:\n  sample_prompt: yes\n", "run.sample_prompt in {file} is True, expected a value"),
        ("run:\n  dir: 2026-01-01\n", "run.dir in {file} is datetime.date(2026, 1, 1), expected"),
        ("data:\n  path: 3\n", "data.path in {file} is 3, expected a value of type str"),
        ("data:\n  path: {a: b}\n", "data.path in {file} is {{'a': 'b'}}, expected a list"),
        ("data:\n  path: [a, 3]\n", "data.path in {file} is 3, expected a value of type str"),
        (
            "es:\n  noise: gausian\n",
            "es.noise in {file} is 'gausian', expected one of rademacher, gaussian; "
            "did you mean gaussian?",
        ),
        ("es:\n  noise: [gaussian]\n", "es.noise in {file} is ['gaussian'], expected one of"),
        ("model:\n  width: 3\n  layers: [\n", "{file} line 4 is not valid YAML: "),
        ("model:\n\twidth: 3\n", "{file} line 2 is not valid YAML: "),
        ("model: !!python/object:os.system {}\n", "{file} line 1 is not valid YAML: "),
        ("model: 'a\x07b'\n", "{file} is not valid YAML: special characters are not allowed"),
        ("run:\n  dir: 2026-99-99\n", "{file} is not valid YAML: month must be in 1..12"),
    ],
)
def test_bad_file_is_refused_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    """The message names the file and the key, or the line, and says what was expected."""
    file = write(tmp_path, text)
    refused(expected.format(file=file), config.load, file)


def test_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    """A file that is not there, is a directory or is no text is named with the reason."""
    binary = tmp_path / "model.bin"
    binary.write_bytes(b"\xff\xfe\x80")
    refused("nowhere.yaml: No such file or directory", config.load, tmp_path / "nowhere.yaml")
    refused(f"cannot read configuration {tmp_path}: ", config.load, tmp_path)
    refused("model.bin: not UTF-8 text", config.load, binary)


def test_a_choice_unlike_all_others_gets_no_guess() -> None:
    """The accepted values are listed once when none is near."""
    message = refused("", lambda: with_fields(es__fitness="zzzz"))
    assert message.endswith("is 'zzzz', expected one of sign, linear, rank, standard")


@pytest.mark.parametrize("text", ["", "# nothing\n", "model:\nes:\n", "{}\n"])
def test_file_that_names_nothing_gives_the_defaults(tmp_path: Path, text: str) -> None:
    """An empty file and empty sections are configurations."""
    assert config.load(write(tmp_path, text)) == Config()


def test_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    """Numbers are read as people write them; everything else keeps its default."""
    text = "es: {alpha: 1e-1, alpha_halflife: 40, population: 1_024}\nrun: {seconds: 30}\n"
    expected = Config(
        es=EsConfig(alpha=0.1, alpha_halflife=40.0, population=1024), run=RunConfig(seconds=30.0)
    )
    loaded = config.load(write(tmp_path, text))
    assert loaded == expected
    assert isinstance(loaded.run.seconds, float)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: {path: book.txt}", DataConfig(source="text", path=("book.txt",))),
        ("data: {path: [a, b]}", DataConfig(source="text", path=("a", "b"))),
        ("data: {path: []}", DataConfig()),
        ("data: {path: [a], source: stdlib}", DataConfig(source="stdlib", path=("a",))),
    ],
)
def test_path_in_a_file_implies_text(tmp_path: Path, text: str, expected: DataConfig) -> None:
    """A path selects the source `text` unless the file says otherwise."""
    assert config.load(write(tmp_path, text)).data == expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--model.width", "32"], Config(model=ModelConfig(width=32))),
        (["--model.width=32"], Config(model=ModelConfig(width=32))),
        (["--es.noise", "gaussian"], Config(es=EsConfig(noise="gaussian"))),
        (["--es.alpha", "1e-2"], Config(es=EsConfig(alpha=0.01))),
        (["--run.seconds", "30"], Config(run=RunConfig(seconds=30.0))),
        (["--run.dir", "runs/a b"], Config(run=RunConfig(dir="runs/a b"))),
        (["--run.sample_prompt", "true"], Config(run=RunConfig(sample_prompt="true"))),
        (["--run.sample_prompt", ""], Config(run=RunConfig(sample_prompt=""))),
        (["--data.path", "a"], Config(data=DataConfig(source="text", path=("a",)))),
        (["--data.path", "a", "b"], Config(data=DataConfig(source="text", path=("a", "b")))),
        (
            ["--es.votes", "unit", "--es.readout", "exact", "--es.update", "carry"],
            Config(es=EsConfig(votes="unit", readout="exact", update="carry")),
        ),
        (
            ["--es.pooled", "--model.width", "8"],
            Config(model=ModelConfig(width=8), es=EsConfig(pooled=True)),
        ),
        (["--es.pooled", "True"], Config(es=EsConfig(pooled=True))),
        (["--es.pooled=false"], Config()),
        (["--es.schedule", "cosine"], Config(es=EsConfig(schedule="cosine"))),
        (["--model.direct", "1", "3"], Config(model=ModelConfig(direct=(1, 3)))),
        (["--model.architecture", "rwkv"], Config(model=ModelConfig(architecture="rwkv"))),
        (["--data.path", "7"], Config(data=DataConfig(source="text", path=("7",)))),
    ],
)
def test_flags_override_defaults(argv: list[str], expected: Config) -> None:
    """A flag sets its field, with the field's type; `--data.path` implies the source `text`."""
    assert parse(*argv) == expected


def test_flags_override_the_file(tmp_path: Path) -> None:
    """What a flag names wins; what the file alone names stays; the rest keeps its default."""
    file = write(tmp_path, "model: {width: 32, layers: 3}\ndata: {path: [a, b]}\n")
    expected = Config(
        model=ModelConfig(width=48, layers=3), data=DataConfig(source="text", path=("c",))
    )
    assert parse("--config", file, "--model.width", "48", "--data.path", "c") == expected
    default = parse("--config", file, "--data.source", "stdlib").data
    assert default == DataConfig(), "the source of the flag leaves no use for the file's path"
    file = write(tmp_path, "data: {mixture: [{name: a, weight: 1, path: [b]}]}\n")
    assert parse("--config", file, "--data.source", "stdlib").data == DataConfig()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--es.populaton", "8"], "unknown argument --es.populaton; did you mean --es.population?"),
        (["--es.populaton=8"], "unknown argument --es.populaton; did you mean --es.population?"),
        (["--es.pop", "8"], "unknown argument --es.pop; did you mean --es."),
        (["--run.s", "8"], "unknown argument --run.s; did you mean --run.s"),
        (["zzzz"], "unknown argument zzzz (see --help)"),
        (["--run.steps", "true"], "argument --run.steps: invalid int value: 'true' (see --help)"),
        (["--run.steps", "1.5"], "argument --run.steps: invalid int value: '1.5'"),
        (["--run.steps"], "argument --run.steps: expected one argument"),
        (["--es.pooled", "no"], "argument --es.pooled: expected true or false, not 'no'"),
        (["--es.noise", "uniform"], "argument --es.noise: invalid choice: 'uniform'"),
        (["--run.seconds", "nan"], "run.seconds in the command line is nan, expected a finite"),
    ],
)
def test_bad_flag_is_refused(argv: list[str], expected: str) -> None:
    """A wrong flag or value is one sentence, with the nearest flag; none may be abbreviated."""
    refused(expected, parse, *argv)


def test_a_list_may_be_emptied(tmp_path: Path) -> None:
    """A flag without values empties what the file lists; no text file is then one too few."""
    file = write(tmp_path, "model: {direct: [1, 2]}\nes: {readout: exact}\n")
    assert parse("--config", file).model.direct == (1, 2)
    assert parse("--config", file, "--model.direct").model.direct == ()
    refused("source is text but no file is named", config.validate, parse("--data.path"))


def test_help_documents_every_field() -> None:
    """Every field has a text of its own, and `--help` prints it with the flag and the default."""
    shown = " ".join(parser().format_help().split())
    for name, section in SECTIONS.items():
        for field in dataclasses.fields(section):
            assert f"--{name}.{field.name} " in shown
            assert len(field.metadata["help"]) > 10
            assert " ".join(field.metadata["help"].split()) in shown
    assert "(default: 512)" in shown


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
positive = st.floats(1e-9, 1e9)


@given(
    st.builds(
        Config,
        model=st.builds(ModelConfig, width=st.integers(1, 512), layers=st.integers(1, 8)),
        es=st.builds(EsConfig, noise=st.sampled_from(["rademacher", "gaussian"]), alpha=positive),
        data=st.builds(
            DataConfig, source=st.just("text"), path=st.lists(texts, min_size=1).map(tuple)
        ),
        run=st.builds(RunConfig, dir=texts, sample_prompt=texts, seconds=positive),
    )
)
def test_yaml_reads_back_equal(written: Config) -> None:
    """`load` of `to_yaml` is the identity, whatever the texts and numbers; so is `from_dict`."""
    assert config.from_dict(yaml.safe_load(config.to_yaml(written))) == written
    assert config.from_dict(config.to_dict(written)) == written


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model__width": 0}, "model.width is 0, must be >= 1"),
        ({"model__layers": -1}, "model.layers is -1, must be >= 1"),
        ({"model__ffn_multiple": 0}, "model.ffn_multiple is 0, must be >= 1"),
        ({"es__population": 0}, "es.population is 0, must be >= 2"),
        ({"es__population": 7}, "es.population is 7, must be even"),
        ({"es__segment_length": 0}, "es.segment_length is 0, must be >= 1"),
        ({"es__members_per_stream": 0}, "es.members_per_stream is 0, must be >= 1"),
        (
            {"es__members_per_stream": 3},
            "es.members_per_stream 3 must be even (a pair reads one stream), "
            "or 1 (votes local, deep)",
        ),
        (
            {"es__population": 10, "es__members_per_stream": 4},
            "es.population 10 is not a multiple of es.members_per_stream 4",
        ),
        ({"es__chunk": -2}, "es.chunk is -2, must be >= 0"),
        ({"es__chunk": 100}, "es.chunk 100 must be even, divide es.population 2048"),
        (
            {"es__chunk": 4, "es__members_per_stream": 8},
            "es.chunk 4 must be even, divide es.population 2048 and be a multiple of "
            "es.members_per_stream 8",
        ),
        (
            {"es__chunk": 1, "es__members_per_stream": 1},
            "es.chunk 1 must be even, divide es.population 2048 and be a multiple of "
            "es.members_per_stream 1",
        ),
        ({"es__rank": 0}, "es.rank is 0, must be >= 1"),
        ({"es__sigma_shift": -1}, "es.sigma_shift is -1, must be >= 0"),
        ({"es__sigma_shift": 13}, "es.sigma_shift is 13, must be at most 12"),
        ({"es__alpha": 0.0}, "es.alpha is 0.0, must be above 0"),
        ({"es__alpha": -1.0}, "es.alpha is -1.0, must be >= 0"),
        ({"es__alpha_halflife": 0.0}, "es.alpha_halflife is 0.0, must be above 0"),
        ({"es__beta1": 0.96, "es__beta2": 0.9}, "es.beta1 is 0.96 and es.beta2 0.9; both must lie"),
        ({"es__beta1": 0.0}, "es.beta1 is 0.0 and es.beta2 0.9; both must lie between 0 and 1"),
        ({"es__beta2": 1.0}, "es.beta1 is 0.8 and es.beta2 1.0; both must lie between 0 and 1"),
        ({"es__learning_rate": 0.0}, "es.learning_rate is 0.0, must be above 0"),
        ({"es__learning_rate": 4.01}, "es.learning_rate is 4.01, must be at most 4.0"),
        ({"es__learning_rate_halflife": 0.0}, "es.learning_rate_halflife is 0.0, must be above 0"),
        ({"model__direct": [0]}, "model.direct is [0], must be different lengths from 1 to 16"),
        ({"model__direct": [3, 17]}, "model.direct is [3, 17], must be different lengths"),
        ({"model__direct": [2, 2]}, "model.direct is [2, 2], must be different lengths"),
        ({"model__direct_bits": 7}, "model.direct_bits is 7, must lie between 8 and 24"),
        ({"model__direct_bits": 25}, "model.direct_bits is 25, must lie between 8 and 24"),
        ({"es__direct_rate": 0.0}, "es.direct_rate is 0.0, must be above 0 and at most 127"),
        ({"es__direct_rate": 127.5}, "es.direct_rate is 127.5, must be above 0 and at most 127"),
        ({"data__holdout": 0.0}, "data.holdout is 0.0, must lie between 0 and 1"),
        ({"data__holdout": 1.0}, "data.holdout is 1.0, must lie between 0 and 1"),
        ({"data__document_bytes": -1}, "data.document_bytes is -1, must be >= 0"),
        ({"data__source": "text"}, "data.source is text but no file is named; add --data.path"),
        ({"data__path": ["a"]}, "data.source is stdlib but data.path names files"),
        ({"data__source": "text", "data__path": ["a", ""]}, "data.path names an empty path"),
        ({"run__dir": ""}, "run.dir is empty; name a directory"),
        ({"run__steps": -1}, "run.steps is -1, must be >= 0"),
        ({"run__seconds": -0.5}, "run.seconds is -0.5, must be >= 0"),
        ({"run__seed": -1}, "run.seed is -1, must be >= 0"),
        ({"run__seed": 2**31}, "run.seed is 2147483648, must lie between 0 and 2^31 - 1"),
        ({"run__log_every": 0}, "run.log_every is 0, must be >= 1"),
        ({"run__eval_every": -1}, "run.eval_every is -1, must be >= 0"),
        ({"run__eval_bytes": -1}, "run.eval_bytes is -1, must be >= 0"),
        ({"run__checkpoint_every": -1}, "run.checkpoint_every is -1, must be >= 0"),
        ({"run__keep": 0}, "run.keep is 0, must be >= 1"),
        ({"run__steps": 2**63}, f"run.steps is {2**63}, must be <= {2**63 - 1}"),
        ({"run__dir": "caf\udce9"}, "run.dir is '\"caf\\udce9\"', not UTF-8"),
        ({"data__path": ("\ud800.txt",), "data__source": "text"}, "not UTF-8; use another name"),
        (
            {"data__mixture": [{"name": "a", "weight": 1.0}, {"name": "b", "weight": -1.0}]},
            "weight -1.0 in data.mixture must be at least 0",
        ),
        (
            {"data__mixture": [{"name": "a", "weight": 0.0}, {"name": "b", "weight": 0.0}]},
            "every weight in data.mixture is 0",
        ),
        ({"run__sample_tokens": -1}, "run.sample_tokens is -1, must be >= 0"),
    ],
)
def test_impossible_size_is_refused(changes: dict[str, object], expected: str) -> None:
    """A size that cannot be is one sentence with the field and its value."""
    refused(expected, config.validate, with_fields(**changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"es__votes": "unit"},
            "es.votes unit needs the readout's exact errors; add --es.readout exact",
        ),
        (
            {"model__direct": [1]},
            "model.direct needs the readout's exact errors; add --es.readout exact",
        ),
        (
            {"es__objective": "reward", "es__votes": "local"},
            "es.objective reward has no log-likelihood of every token, which es.votes local needs; "
            "use --es.votes eggroll",
        ),
        (
            {"es__objective": "reward", "es__votes": "unit", "es__readout": "exact"},
            "which es.votes unit and es.readout exact need; use --es.votes eggroll and "
            "--es.readout perturbed",
        ),
        ({"es__update": "carry", "es__learning_rate": 0.0001}, "of which nothing would move"),
        (
            {"es__votes": "local", "es__readout": "exact", "es__members_per_stream": 1},
            "es.members_per_stream is 1, but final_norm is perturbed, and a pair reads one stream; "
            "make it 2",
        ),
        (
            {"model__architecture": "rwkv", "es__votes": "local", "es__readout": "exact"},
            "es.votes local perturbs nothing, so that members of one stream would be equal; add "
            "--es.members_per_stream 1, and halve es.population for as many streams",
        ),
        (
            {"model__architecture": "rwkv", "es__members_per_stream": 1},
            "es.members_per_stream is 1, but embedding is perturbed, and a pair reads one stream",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(
    changes: dict[str, object], expected: str
) -> None:
    """Each value is possible, but not beside the others."""
    refused(expected, recipe.check, config.validate(with_fields(**changes)))


UNIT = {"es__votes": "unit", "es__readout": "exact"}
LOCAL = {
    **{"model__architecture": "rwkv", "es__members_per_stream": 1},
    **{"es__votes": "local", "es__readout": "exact"},
}
THREE_GAUSSIANS = {"es__noise": "gaussian", "es__rank": 3, "es__segment_length": 1}


@pytest.mark.parametrize(
    ("largest", "too_large", "expected"),
    [
        ({"model__width": 16513}, {"model__width": 16514}, "the perturbation of 66056 inputs"),
        (
            {"model__width": 66052, "model__ffn_multiple": 1},
            {"model__width": 66573, "model__ffn_multiple": 1},
            "a dot over 66573 inputs can reach 2147511834",
        ),
        ({"es__rank": 258}, {"es__rank": 259}, "the perturbation of 256 inputs at rank 259"),
        (
            {"model__architecture": "rwkv", "model__ffn_multiple": 1, "model__width": 33026},
            {"model__architecture": "rwkv", "model__ffn_multiple": 1, "model__width": 33027},
            "the perturbation of 66054 inputs at rank 1",
        ),
        (
            {"es__rank": 13, "es__noise": "gaussian"},
            {"es__rank": 14, "es__noise": "gaussian"},
            "the perturbation of 256 inputs at rank 14 (gaussian) can reach 2167054848",
        ),
        (
            {"es__population": 2**24 - 2},
            {"es__population": 2**24},
            "the votes of 16777216 members at rank 1 (rademacher, sign) can reach 2147483648",
        ),
        (
            {"es__population": 2396744, "es__fitness": "linear"},
            {"es__population": 2396746, "es__fitness": "linear"},
            "the votes of 2396746 members at rank 1 (rademacher, linear)",
        ),
        ({"es__segment_length": 1023}, {"es__segment_length": 1024}, "the score of 1024 tokens"),
        (
            {"es__population": 2113664, "es__segment_length": 1, "es__votes": "trace"},
            {"es__population": 2113666, "es__segment_length": 1, "es__votes": "trace"},
            "the traces of 2113666 members at rank 1 (rademacher) can reach 2147484656",
        ),
        (
            {"es__population": 163374, "es__votes": "trace", **THREE_GAUSSIANS},
            {"es__population": 163376, "es__votes": "trace", **THREE_GAUSSIANS},
            "the traces of 163376 members at rank 3 (gaussian)",
        ),
        (
            {"es__population": 4831234, "es__segment_length": 1, "es__readout": "exact"},
            {"es__population": 4831236, "es__segment_length": 1, "es__readout": "exact"},
            "the votes of 4831236 members over 1 tokens can reach 2147484402",
        ),
        (
            {"es__population": 96624, **UNIT},
            {"es__population": 96626, **UNIT},
            "the votes of 96626 members over 50 tokens can reach",
        ),
        (
            {"es__population": 48312, **LOCAL},
            {"es__population": 48314, **LOCAL},
            "the votes of 48314 members over 50 tokens can reach",
        ),
        (
            {"es__population": 96624, "es__votes": "trace"},
            {"es__population": 96626, "es__votes": "trace"},
            "the votes of 96626 members over 50 tokens can reach",
        ),
        (
            {"model__width": 4128, **UNIT},
            {"model__width": 4129, **UNIT},
            "the credit of width 4129 can reach 2147872768",
        ),
    ],
)
def test_sums_that_could_overflow_are_refused(
    largest: dict[str, object], too_large: dict[str, object], expected: str
) -> None:
    """The largest size whose worst sum fits an int32 passes; the next one is refused."""
    accepted = with_fields(**largest)
    assert config.validate(accepted) is accepted
    recipe.check(accepted)
    message = refused(expected, recipe.check, config.validate(with_fields(**too_large)))
    assert message.endswith("above the int32 limit 2147483647; make it smaller")


@pytest.mark.parametrize("changes", [{"es__population": 2**24 - 2}, {"model__width": 5000}])
def test_bounds_of_other_votes_bind_nobody_else(changes: dict[str, object]) -> None:
    """What is too large for votes token by token, or for credit, is accepted for plain votes."""
    recipe.check(config.validate(with_fields(**changes)))
    refused("can reach", recipe.check, config.validate(with_fields(**changes, **UNIT)))


@pytest.mark.parametrize(
    ("bits", "most_terms"), [(0, 133144), (1, 268401), (2, 545461), (3, 1127288), (4, 2415617)]
)
def test_spare_bits_are_the_fewest_that_fit(bits: int, most_terms: int) -> None:
    """Up to `most_terms` pairs x tokens the sum of products of 127 and 127 >> bits fits int32."""
    assert most_terms * 127 * (127 >> bits) <= limits.INT32_MAX
    assert (most_terms + 1) * 127 * (127 >> bits) > limits.INT32_MAX
    assert limits.spare_bits(EsConfig(population=2 * most_terms, segment_length=1)) == bits
    following = EsConfig(population=2 * most_terms + 2, segment_length=1)
    alone = EsConfig(population=2 * most_terms, segment_length=1, members_per_stream=1)
    assert limits.spare_bits(alone) == min(bits + 1, limits.SPARE_BITS_MAX)  # every member votes
    assert limits.spare_bits(following) == min(bits + 1, limits.SPARE_BITS_MAX)


def test_spare_bits_count_pairs_times_tokens() -> None:
    """Members of a pair vote once; every token of a segment counts."""
    assert limits.spare_bits(EsConfig(population=5324, segment_length=50)) == 0
    assert limits.spare_bits(EsConfig(population=5326, segment_length=50)) == 1
    for es in (EsConfig(), presets.paper_es()):
        assert limits.spare_bits(es) == 0, "the recipes themselves lose nothing"


def test_what_may_change_at_a_resumption() -> None:
    """Length, intervals, place and chunking may change; all that decides the weights may not."""
    assert set(FLAGS) >= resume.RESUMABLE_CHANGES >= {"run.dir", "run.steps", "es.chunk"}
    fixed = set(FLAGS) - resume.RESUMABLE_CHANGES
    sections = {name.split(".")[0] for name in fixed - {"run.seed"}}
    assert sections == {"model", "es", "data", "reward", "control"}
    assert "run.seed" in fixed


def test_configuration_is_read_without_jax(run_command: RunCommand) -> None:
    """Importing the modules imports neither jax nor numpy, so that --help answers at once."""
    code = "import sys, int_lm.config.command_line\n"
    code += "print({'jax', 'jaxlib', 'numpy'} & set(sys.modules))"
    finished = run_command("-c", code)
    assert (finished.returncode, finished.stdout) == (0, "set()\n"), finished.stderr


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"es__warmup": 100, "run__steps": 100}, "es.warmup 100 does not end before the last step"),
        ({"es__decay": 0.5}, "es.decay 0.5 keeps weights below about 0.062"),
        ({"es__decay": 0.125, "es__update": "threshold"}, "below about 0.5"),
        ({"es__direct_dropout": 0.3}, "es.direct_dropout 0.3 leaves out nothing"),
        ({"es__direct_dropout": 0.3, "model__direct": [2, 3]}, "of more than 3 tokens; add one"),
        ({"es__pooled": True, "es__population": 124}, "62 streams of a short text may read none"),
    ],
)
def test_what_has_no_effect_or_too_much_of_one_is_said(
    changes: dict[str, object], expected: str
) -> None:
    """It is possible, so it is not refused; a little less, or one table more, is silent."""
    [said] = cautions.of(config.validate(with_fields(**{"es__update": "carry"} | changes)))
    assert expected in said
    sound = {"es__warmup": 99, "run__steps": 100, "es__decay": 0.03, "model__direct": [3, 4]}
    assert cautions.of(with_fields(es__pooled=True, es__population=128)) == []
    assert cautions.of(with_fields(es__update="carry", es__direct_dropout=0.3, **sound)) == []


def test_a_prompt_that_is_shown_is_the_run_s_own() -> None:
    """As a shell reads it; of a run that shows no samples it is a word."""
    shown = [command_line.prompt(with_fields(run__sample_prompt=text)) for text in ("", "it's 3>")]
    assert [shlex.split(text) for text in shown] == [["The "], ["it's 3>"]]


def test_nothing_is_said_of_shipped_configurations() -> None:
    """As they are."""
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(files) > 9
    assert [cautions.of(config.load(file)) for file in files] == [[]] * len(files)
