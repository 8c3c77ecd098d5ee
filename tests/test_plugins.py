"""Plug-ins: a user's own architecture, estimator, objective or update works everywhere.

tests/plugins has one of each. It is named in full (`plugins.gru:GRU`), as a user would, with tests/
on the path: nothing in int_lm knows of it.
"""

import ast
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from plugins.gru import GRU
from plugins.hits import HITS
from plugins.signs import SIGNS
from tiny_command import TINY, write_text

import eval as eval_command
from int_lm import export, plugins, runtime
from int_lm.config import Config, EsConfig, ModelConfig
from int_lm.errors import UserError
from int_lm.export import __main__ as export_command
from int_lm.files import checkpoint
from int_lm.measure import diagnose, evaluate
from int_lm.method import evolve, recipe, token_votes
from int_lm.method.clock import Clock
from int_lm.method.estimator import Estimator
from int_lm.method.objective import Objective
from int_lm.method.update import Update
from int_lm.model import architecture, params, perturb, reading
from int_lm.model.architecture import Architecture
from int_lm.model.language_model import LanguageModel
from int_lm.model.layers import Use
from int_lm.sample import __main__ as sample_command
from int_lm.verify import __main__ as verify_command

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
NAMES = {
    "architecture": "plugins.gru:GRU",
    "estimator": "plugins.signs:SIGNS",
    "objective": "plugins.hits:HITS",
    "update": "plugins.stochastic:STOCHASTIC",
}
# how a user's configuration asks for each; guesses are few unless many members make many
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "architecture": {"model": {"architecture": NAMES["architecture"]}},
    "estimator": {"es": {"votes": NAMES["estimator"], "readout": "perturbed", "population": 64}},
    "objective": {
        "es": {
            "objective": NAMES["objective"],
            "votes": "eggroll",
            "readout": "perturbed",
            "sigma_shift": 1,
            "population": 64,
            "segment_length": 16,
        }
    },
    "update": {"es": {"update": NAMES["update"]}},
}
CLASSES = {
    "architecture": Architecture,
    "estimator": Estimator,
    "objective": Objective,
    "update": Update,
}
KINDS = list(NAMES)


# -- What a user does with it, command by command --------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run with a plug-in that nothing disturbed.

    Attributes:
      place: a directory with its text, configuration, run and export.
      output: what training printed.
    """

    kind: str
    place: Path
    output: str

    @property
    def name(self) -> str:
        return NAMES[self.kind]

    @property
    def run(self) -> Path:
        return self.place / "run"

    @property
    def export(self) -> Path:
        return self.run / "export"

    def following(self, verb: str) -> list[str]:
        """A command that training printed at its end, as arguments of Python."""
        lines = map(shlex.split, self.output.split("next:\n")[1].splitlines())
        [words] = [words for words in lines if verb in words]
        return ["-m", "int_lm", *words[words.index(verb) :]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of the commands: int_lm and tests/ on the path, and a cache of what compiles."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(TESTS))),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def call(
    environment: Mapping[str, str], place: Path, *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Run a command of this repository to its end: `-m module ...`, or a script's name first."""
    first, *others = map(str, arguments)
    return subprocess.run(
        [sys.executable, ROOT / first if first.endswith(".py") else first, *others],
        env=dict(environment),
        cwd=place,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def succeed(environment: Mapping[str, str], place: Path, *arguments: object) -> str:
    """What a command prints, which must succeed."""
    done = call(environment, place, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def configuration(place: Path, kind: str) -> list[object]:
    """The arguments of a tiny run with a plug-in of a kind, which a YAML file names."""
    sections: dict[str, dict[str, Any]] = {}
    for flag, value in TINY.items():
        section, key = flag.removeprefix("--").split(".")
        sections.setdefault(section, {})[key] = value
    for section, values in SETTINGS[kind].items():
        sections[section] |= values
    sections["data"] |= {"path": [str(place / "words.txt")], "shards": str(place / "shards")}
    (place / "config.yaml").write_text(yaml.safe_dump(sections))
    return ["--config", place / "config.yaml"]


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def hashes(run: Path) -> dict[int, str]:
    """The hash of the weights at every logged step."""
    return {row["step"]: row["weights_hash"] for row in rows(run)}


@pytest.fixture(scope="module", params=KINDS)
def finished(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    environment: dict[str, str],
) -> Iterator[Finished]:
    """A finished run with each of the plug-ins in turn, and its export."""
    place = tmp_path_factory.mktemp(request.param)
    write_text(place / "words.txt")
    arguments = configuration(place, request.param)
    output = succeed(environment, place, "train.py", *arguments, "--run.dir", place / "run")
    found = Finished(request.param, place, output)
    succeed(environment, place, *found.following("export"))
    yield found


@pytest.mark.slow
def test_a_run_learns_and_reports(finished: Finished) -> None:
    """The last step is better than the first; a score that is no log-likelihood is called score."""
    first, *_, last = rows(finished.run)
    assert finished.name in (finished.run / "config.yaml").read_text()
    header = next(line for line in finished.output.splitlines() if "valid bpb" in line)
    if finished.kind == "objective":
        assert last["train_score"] > first["train_score"]
        assert "train_bits_per_byte" not in first and " score " in header
        assert "train bpb" not in header
    else:
        assert last["train_bits_per_byte"] < first["train_bits_per_byte"] - 0.1
        assert "train_score" not in first and "train bpb" in header
    assert last["valid_bits_per_byte"] > 0 and last["vote_agreement"].keys() >= {"head"}


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(
    finished: Finished, environment: dict[str, str], tmp_path: Path
) -> None:
    """SIGKILL after the first checkpoint, then the same command: every hash, and every array."""
    run = tmp_path / "run"
    arguments = [*configuration(finished.place, finished.kind), "--run.dir", run]
    command = [sys.executable, ROOT / "train.py", *arguments]
    process = subprocess.Popen(
        list(map(str, command)),
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not checkpoint.steps(run / "checkpoints"):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run had ended before it could be killed"
    killed_at = checkpoint.latest_step(run / "checkpoints")
    assert killed_at is not None and 0 < killed_at < TINY["--run.steps"]
    output = succeed(environment, tmp_path, "train.py", *arguments)
    assert f"resuming {run} at step {killed_at}" in output
    assert hashes(run) == hashes(finished.run)
    undisturbed, resumed = arrays(finished.kind, finished.run), arrays(finished.kind, run)
    assert undisturbed.keys() == resumed.keys()
    for path, array in undisturbed.items():
        np.testing.assert_array_equal(resumed[path], array)


def arrays(kind: str, run: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint of a run, by path."""
    sections = SETTINGS[kind]
    model = ModelConfig(width=16, layers=1, **sections.get("model", {}))
    es = {"population": 16, "segment_length": 8} | sections.get("es", {})
    plugins.trust(NAMES[kind])
    found = recipe.of(Config(model=model, es=EsConfig(**es)), 256)
    restored = checkpoint.restore(run / "checkpoints", evolve.abstract(found).stored())
    assert restored is not None and restored.step == TINY["--run.steps"]
    return checkpoint.leaves(restored.state)


@pytest.mark.slow
def test_four_devices_give_the_same_weights(
    finished: Finished, environment: dict[str, str], tmp_path: Path
) -> None:
    """Members spread over four devices, each of which moves its part of the weights."""
    arguments = [*configuration(finished.place, finished.kind), "--run.dir", tmp_path / "run"]
    four = environment | {"JAX_NUM_CPU_DEVICES": "4"}
    output = succeed(four, tmp_path, "train.py", *arguments, "--distributed.update", "sharded")
    assert "devices: 4 (cpu) of 1 process; votes are split among them" in output
    assert hashes(tmp_path / "run") == hashes(finished.run)


@pytest.mark.slow
def test_run_export_and_bare_python_agree(finished: Finished, environment: dict[str, str]) -> None:
    """Every figure, and the text of a sample: from JAX by the commands that training printed, from
    the export in NumPy, and from the lines of its card in a Python without int_lm.
    """
    draw = ("--prompt", "The ", "--tokens", 200, "--temperature", 0.8)
    # an export holds a network, and nothing of how it was trained
    trusted = ("--plugin", finished.name) if finished.kind == "architecture" else ()
    exported = ("--export", finished.export, *trusted)
    figures = [
        json.loads(succeed(environment, finished.place, *arguments, "--json"))
        for arguments in (finished.following("eval"), ("eval.py", *exported))
    ]
    assert figures[0].pop("model") != figures[1].pop("model")
    assert figures[0] == figures[1] and figures[0]["tokens"] > 1000
    of_run, of_export = (
        succeed(environment, finished.place, *arguments, *draw)
        for arguments in (finished.following("sample"), ("-m", "int_lm.sample", *exported))
    )
    assert of_run == of_export and len(of_run) > 20

    assert (finished.export / "architecture.py").exists() == (finished.kind == "architecture")
    card = (finished.export / "README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet
    program = f"{snippet[1]}\nimport sys\nprint({{'int_lm', 'jax'}} & set(sys.modules))\n"
    bare = {key: value for key, value in environment.items() if key != "PYTHONPATH"}
    text, bits, imported = succeed(bare, finished.export, "-c", program).splitlines()
    assert re.fullmatch(r"[0-9.]+ bits", bits) and imported == "set()"
    assert of_run == "The " + ast.literal_eval(text).decode("utf-8", "replace") + "\n"
    assert ("--plugin" in card) == (finished.kind == "architecture")


@pytest.mark.slow
def test_a_plan_is_made(finished: Finished, environment: dict[str, str]) -> None:
    """`train.py --plan` counts and times it, and writes nothing."""
    arguments = configuration(finished.place, finished.kind)
    output = succeed(
        environment, finished.place, "train.py", *arguments, "--plan", "--run.dir", "unwritten"
    )
    [weights] = re.findall(r"weights +([\d,]+) int8 of the network", output)
    assert f"{weights} int8 weights" in finished.output
    assert re.search(r"speed +[\d,]+ member tokens/s", output)
    assert not (finished.place / "unwritten").exists()


@pytest.mark.slow
def test_a_run_is_verified(finished: Finished, environment: dict[str, str]) -> None:
    """Every logged hash is found again, from the beginning."""
    arguments = (finished.run, "--plugin", finished.name, "--step", 0, "--json")
    output = succeed(environment, finished.place, "-m", "int_lm.verify", *arguments)
    assert json.loads(output)["confirmed"] == list(hashes(finished.run))


@pytest.mark.slow
def test_code_that_a_file_names_is_not_run_unasked(
    finished: Finished, environment: dict[str, str], tmp_path: Path, monkeypatch
) -> None:
    """One sentence that names --plugin, exit code 2."""
    sentence = (
        f"the {finished.kind} {finished.name} is code outside int_lm; "
        f"if you trust it, add --plugin {finished.name}"
    )
    run, out = ["--run", str(finished.run)], str(tmp_path / "out")
    refused: list[tuple[Callable[[list[str]], None], list[str]]] = [
        (eval_command.main, run),
        (sample_command.main, run),
        (export_command.main, [*run, "--out", out]),
        (verify_command.main, [str(finished.run)]),
    ]
    if finished.kind == "architecture":
        exported = ["--export", str(finished.export)]
        refused += [(eval_command.main, exported), (sample_command.main, exported)]
    monkeypatch.setattr(plugins, "_trusted", set())
    for command, arguments in refused:
        with pytest.raises(UserError) as error:
            command(arguments)
        assert str(error.value) == sentence
    done = call(environment, finished.place, "eval.py", *run)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == f"eval.py: error: {sentence}\n"
    assert not Path(out).exists()


@pytest.mark.slow
def test_an_installed_architecture_is_named_shortly(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """A package's entry point: no name in full and no trust, for the user has installed it."""
    write_text(tmp_path / "words.txt")
    installed = environment | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(install(tmp_path / "site"))))
    }
    arguments = configuration(tmp_path, "architecture")
    shortly = ("--model.architecture", "gru", "--run.steps", 20, "--run.dir", "run")
    output = succeed(installed, tmp_path, "train.py", *arguments, *shortly)
    assert "model: gru, " in output and "--plugin" not in output
    where = ("--run", "run", "--out", "export")
    output = succeed(installed, tmp_path, "-m", "int_lm.export", *where)
    assert "--plugin" not in output
    assert '{"gru": architecture.Gru}' in (tmp_path / "export" / "README.md").read_text()
    run, exported = (
        json.loads(succeed(installed, tmp_path, "eval.py", *source, "--json"))
        for source in (("--run", "run"), ("--export", "export"))
    )
    assert run["bits_per_byte"] == exported["bits_per_byte"]
    done = call(environment, tmp_path, "eval.py", "--run", "run")  # where it is not installed
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "'gru', expected one of" in done.stderr


# -- How names are found ---------------------------------------------------------------------------


def install(site: Path) -> Path:
    """A directory with an installed package that has all of tests/plugins."""
    package, info = site / "own_package", site / "own_package-1.0.dist-info"
    shutil.copytree(TESTS / "plugins", package, ignore=shutil.ignore_patterns("__pycache__"))
    code = (package / "gru.py").read_text()
    assert "plugins.gru_numpy:Gru" in code
    (package / "gru.py").write_text(code.replace("plugins.gru_numpy", "own_package.gru_numpy"))
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    entries = [
        f"{kind}.{short_name(kind)} = {name.replace('plugins.', 'own_package.')}"
        for kind, name in NAMES.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(["[int_lm.plugins]", *entries, ""]))
    return site


def short_name(kind: str) -> str:
    """The plug-in's own name."""
    return NAMES[kind].partition(":")[2].lower()


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_point_is_found(kind: str, tmp_path: Path, monkeypatch) -> None:
    """By its kind and name, without trust; `--help` lists it."""
    with pytest.raises(UserError, match=f"{short_name(kind)!r}, expected one of"):
        plugins.resolve(kind, short_name(kind), CLASSES[kind])
    monkeypatch.syspath_prepend(str(install(tmp_path / "site")))
    assert short_name(kind) in plugins.names(kind)
    value = plugins.resolve(kind, short_name(kind), CLASSES[kind])
    assert isinstance(value, CLASSES[kind])
    assert value is plugins.attribute(NAMES[kind].replace("plugins.", "own_package."), "it")


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_in_full_needs_trust(kind: str, monkeypatch) -> None:
    """Of a configuration that the user wrote, and of --plugin; nothing is imported before."""
    monkeypatch.setattr(plugins, "_trusted", set())
    with pytest.raises(UserError, match=f"add --plugin {NAMES[kind]}$"):
        plugins.resolve(kind, NAMES[kind], CLASSES[kind])
    plugins.trust(NAMES[kind])
    value = plugins.resolve(kind, NAMES[kind], CLASSES[kind])
    assert value is plugins.attribute(NAMES[kind], "it")
    other = next(other for other in KINDS if other != kind)
    with pytest.raises(UserError, match=f"expected {CLASSES[other].__name__}"):
        plugins.resolve(other, NAMES[kind], CLASSES[other])


@pytest.mark.parametrize("name", [":GRU", "plugins.gru:", ".gru:GRU", "a b:C", "plugins.gru:GRU:x"])
def test_a_malformed_name_is_refused(name: str, run_command) -> None:
    """Before anything is imported, in a configuration and behind --plugin."""
    with pytest.raises(UserError, match="expected module:name, as in"):
        plugins.check("architecture", name, "model.architecture")
    done = run_command("eval.py", "--run", "nothing", "--plugin", name)
    assert done.returncode == 2 and "is not of the form module:name" in done.stderr


@pytest.mark.parametrize(
    "code, problem",
    [
        ("import nothing_of_this_name", "No module named"),
        ("GRU = (", "was never closed"),
        ("", "has no GRU"),
        ("GRU = 1", "is of type int, expected Architecture"),
    ],
)
def test_a_module_that_does_not_work_is_reported(
    code: str, problem: str, tmp_path: Path, monkeypatch
) -> None:
    """One sentence with the name, and what is wrong with the module."""
    module = f"broken_{abs(hash(code))}"
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.trust(f"{module}:GRU")
    with pytest.raises(UserError, match=rf"{module}.*{problem}"):
        plugins.resolve("architecture", f"{module}:GRU", Architecture)


def test_no_other_module_names_an_architecture() -> None:
    """Its own file, the list of names, the runtime, and the default of the configuration do."""
    naming = {
        str(path.relative_to(ROOT / "int_lm"))
        for path in (ROOT / "int_lm").rglob("*.py")
        if re.search(r"(?<![a-z])(egg|rwkv)(?![a-z])", path.read_text(), re.IGNORECASE)
    }
    own = {"model/egg.py", "model/rwkv.py"}
    assert naming == own | {"plugins.py", "runtime.py", "config/schema.py"}


# -- The plug-ins themselves, and what they asked of int_lm ----------------------------------------


def random_weights(model: LanguageModel, scale: float = 24) -> params.Parameters:
    """Random int8 weights of every tensor."""
    generator = np.random.default_rng(1)
    return params.Parameters.of_paths(
        {
            path: np.clip(np.rint(generator.normal(0, scale, spec.full_shape)), -127, 127).astype(
                np.int8
            )
            for path, spec in model.specs.by_path().items()
        }
    )


def gru_model(**fields: Any) -> LanguageModel:
    """A small language model with the architecture of tests/plugins."""
    plugins.trust(NAMES["architecture"])
    sizes = {"width": 24, "layers": 3, "architecture": NAMES["architecture"]} | fields
    return LanguageModel(ModelConfig(**sizes), 256)


@pytest.mark.parametrize("scale", [24, 1000])
@pytest.mark.parametrize("direct", [(), (1, 3)])
def test_gru_computes_the_same_in_numpy(scale: float, direct: tuple[int, ...]) -> None:
    """Logits of random and of extreme weights, over separators, with context tables and without."""
    model = gru_model(direct=direct, direct_bits=8)
    weights = random_weights(model, scale)
    form = export.numpy_forms(NAMES["architecture"])[NAMES["architecture"]]
    section = {"layers": 3, "width": 24, "direct": list(direct), "direct_bits": 8}
    nothing = np.zeros(0, np.int32)
    exported = runtime.Model({"model": section}, form, weights.by_path(), nothing, nothing)
    tokens_TP = np.random.default_rng(2).integers(0, 256, (40, 5))
    tokens_TP[[0, 13, 20], [[0], [2], [4]]] = 0
    state, own = model.initial_state(5), exported.initial_state(5)
    step, seen = jax.jit(model.step), perturb.unperturbed(weights)
    for tokens_P in tokens_TP:
        state, logits_PV, _ = step(seen, state, jnp.asarray(tokens_P, jnp.int32))
        own, own_PV = exported.step(own, tokens_P)
        np.testing.assert_array_equal(logits_PV, own_PV)
    assert np.abs(np.asarray(logits_PV, np.int32)).max() > 0


def test_signs_are_what_its_docstring_says() -> None:
    """Every pair, token and rank one after another, in NumPy."""
    generator = np.random.default_rng(3)
    T, I, M, N, R = 3, 4, 5, 7, 2
    left, right = (generator.choice([-16, 16], (I, size, R)).astype(np.int8) for size in (M, N))
    x_TIN = generator.integers(-127, 128, (T, I, N)).astype(np.int8)
    sign_TI1 = generator.integers(-1, 2, (T, I, 1)).astype(np.int8)
    expected = np.zeros((M, N), np.int64)
    for t in range(T):
        for i in range(I):
            for r in range(R):
                score = int(right[i, :, r].astype(int) @ x_TIN[t, i].astype(int)) >> (3 + 1)
                sign = np.sign(score) * int(sign_TI1[t, i, 0])
                expected += sign * np.outer(left[i, :, r].astype(int), x_TIN[t, i].astype(int))
    weight = perturb.Weight(jnp.zeros((M, N), jnp.int8), jnp.asarray(left), jnp.asarray(right))
    spec = params.Spec((M, N), params.Role.MATRIX)
    assert SIGNS.of_tokens is not None
    operands = spec, weight, jnp.asarray(x_TIN), None, jnp.asarray(sign_TI1)
    votes = SIGNS.of_tokens.votes(*operands, None)  # type: ignore[arg-type]  # it rounds nothing
    np.testing.assert_array_equal(votes, expected)


def test_the_sums_of_an_estimator_are_bounded() -> None:
    """A population whose votes could overflow is refused in the words of the plug-in."""
    plugins.trust(NAMES["estimator"])
    es = EsConfig(votes=NAMES["estimator"], readout="perturbed", population=2**16)
    recipe.check(Config(es=dataclasses.replace(es, segment_length=16)))
    with pytest.raises(UserError, match="the signed votes of 65536 members over 64 tokens"):
        recipe.check(Config(es=dataclasses.replace(es, segment_length=64)))


def test_hits_are_those_of_the_evaluation() -> None:
    """Of the bare model: the number of greedy hits, and the state that reading leaves."""
    model = gru_model()
    members = jax.tree.map(jnp.asarray, perturb.unperturbed(random_weights(model)))
    tokens_PT = jnp.asarray(np.random.default_rng(4).integers(1, 256, (4, 60)), jnp.int32)
    start = model.initial_state(4)
    _, logits_TPV = reading.measured(
        model, members, start, tokens_PT, metric=lambda logits, _: jnp.argmax(logits, -1)
    )
    guessed_PT = jnp.concatenate([tokens_PT[:, :1], logits_TPV.T.astype(jnp.int32)], axis=1)
    mixed_PT = jnp.where(jnp.arange(60)[None] % 3 == 0, guessed_PT, tokens_PT)
    state, hits_TP = reading.measured(model, members, start, mixed_PT, metric=evaluate.greedy_hit)
    own_state, own_P, records = HITS.run(model, members, start, mixed_PT, lambda *_: None)
    np.testing.assert_array_equal(own_P, np.asarray(hits_TP).sum(axis=0))
    np.testing.assert_array_equal(own_state["cell"], state["cell"])
    assert records is None and int(own_P.sum()) > 0


@pytest.mark.parametrize("votes", ["unit", "trace", NAMES["estimator"]])
def test_an_objective_without_tokens_is_refused_for_their_votes(votes: str) -> None:
    """With what will do."""
    plugins.trust(*NAMES.values())
    es = EsConfig(objective=NAMES["objective"], votes=votes)
    with pytest.raises(UserError, match="use --es.votes eggroll and --es.readout perturbed"):
        recipe.check(Config(es=es))


def test_the_diagnosis_counts_matrices_outside_the_layers() -> None:
    """`dense` stands alone: one row, of as many values as a layer's `output`."""
    model = gru_model(width=16, layers=2)
    settings = Config(model=model.settings, es=EsConfig(population=8, segment_length=4))  # type: ignore[arg-type]
    weights, members = random_weights(model), model.initial_state(8)
    tokens_P = jnp.arange(8, dtype=jnp.int32)
    found = diagnose.histograms(recipe.of(settings, 256), weights, members, tokens_P)
    assert found["layers/output"].shape == (2, 255) and found["dense"].shape == (1, 255)
    assert found["dense"].sum() == found["layers/output"][1].sum() == 8 * 16


def test_an_update_may_remember_some_tensors_only() -> None:
    """`carry` with remainders of matrices and none of vectors takes its steps."""
    from int_lm.method.update.carry import CARRY

    def memory(spec: params.Spec) -> dict[str, jax.Array]:
        return {} if spec.role is params.Role.VECTOR else CARRY.memory(spec)

    def move(es, tensor, weight, memory, votes, values):
        if memory:
            return CARRY.move(es, tensor, weight, memory, votes, values)
        return weight, memory

    model = gru_model(width=16, layers=1)
    settings = Config(model=model.settings, es=EsConfig(population=8, segment_length=4))  # type: ignore[arg-type]
    partly = dataclasses.replace(
        recipe.of(settings, 256), update=CARRY._replace(memory=memory, move=move)
    )
    tokens_ST = np.random.default_rng(5).integers(0, 256, (4, 5)).astype(np.uint8)
    state = evolve.initial(partly)
    before = state.weights.by_path()
    after, _ = evolve.compiled_step(partly)(state, tokens_ST, 0)
    assert set(after.memory["remainders"]) == {
        path for path, spec in model.specs.by_path().items() if spec.role is not params.Role.VECTOR
    }
    np.testing.assert_array_equal(after.weights.by_path()["layers/bias"], before["layers/bias"])
    assert any((after.memory["remainders"][path] != 0).any() for path in after.memory["remainders"])


@pytest.mark.parametrize(
    "path, change, problem",
    [
        ("head", None, "must have the tensor head, of the role READOUT"),
        ("embedding", {"role": params.Role.MATRIX}, "must have the tensor embedding"),
        ("dense", {"role": params.Role.READOUT}, "has a second tensor of the role READOUT, dense"),
        ("dense", {"role": params.Role.TABLE}, "has a tensor dense, which only context tables"),
        ("layers/input", {"through": "dense"}, "has layers/input act through dense"),
        ("layers/input", {"through": "layers/nothing"}, "act through layers/nothing"),
        ("layers/input", {"shape": (20, 16)}, r"act .* \(2\), whose inputs divide its 20 outputs"),
    ],
)
def test_tensors_that_do_not_go_together_are_refused(
    path: str, change: dict[str, Any] | None, problem: str
) -> None:
    """By the path of the first one, before their votes come out wrong."""
    specs = dict(params.flatten(GRU.specs(ModelConfig(width=16, layers=2), 256)))
    architecture.check("gru", params.unflatten(specs))
    specs.pop(path) if change is None else specs.update(
        {path: dataclasses.replace(specs[path], **change)}
    )
    with pytest.raises(UserError, match=f"the architecture gru .*{problem}"):
        architecture.check("gru", params.unflatten(specs))


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"of_tokens": None}, "must have one of of_fitness and of_tokens"),
        ({"of_fitness": lambda *_: None}, "must have one of of_fitness and of_tokens"),
        ({"roles": SIGNS.roles | {params.Role.VECTOR}}, "cannot vote on VECTOR"),
        ({"roles": SIGNS.roles | {params.Role.TABLE}}, "cannot vote on TABLE"),
        (
            {"of_tokens": None, "of_fitness": lambda *_: None, "perturbed": frozenset()},
            "cannot vote on MATRIX, PROJECTION, READOUT",
        ),
    ],
)
def test_an_estimator_that_contradicts_itself_is_refused(
    change: dict[str, Any], problem: str, tmp_path: Path, monkeypatch
) -> None:
    """Before a step is compiled."""
    module = types.ModuleType("contradictory")
    module.WRONG = SIGNS._replace(**change)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "contradictory", module)
    plugins.trust("contradictory:WRONG")
    es = EsConfig(votes="contradictory:WRONG", readout="perturbed")
    with pytest.raises(UserError, match=problem):
        recipe.check(Config(es=es))


@pytest.mark.parametrize(
    "field, name", [("schedule", "invers"), ("noise", "normal"), ("fitness", 1), ("readout", "")]
)
def test_an_unknown_choice_is_refused_with_the_names(field: str, name: Any) -> None:
    """Of a configuration made in Python, which no parser has checked."""
    with pytest.raises(UserError, match=f"es.{field} is {name!r}, expected one of .*") as caught:
        recipe.check(Config(es=EsConfig(**{field: name})))
    assert all(known in str(caught.value) for known in recipe.CHOICES[field])


def test_choices_are_those_of_the_configuration() -> None:
    """The names that a recipe takes and those that a parser takes are the same."""
    hints = typing.get_type_hints(EsConfig)
    for field, names in recipe.CHOICES.items():
        assert set(typing.get_args(hints[field])) == set(names)


def test_fitness_votes_of_another_scale_move_as_many_weights(monkeypatch) -> None:
    """`threshold` estimates the deviation of votes that are no plain votes from the votes."""
    from int_lm.method.estimator.eggroll import EGGROLL
    from int_lm.method.population import PopulationResult
    from int_lm.method.state import Tables

    def wide(es: Any, noise: Any, fitness_I: Any) -> Any:
        return 16 * EGGROLL.of_fitness(es, noise, fitness_I)  # type: ignore[misc]

    module = types.ModuleType("wider")
    module.WIDER = EGGROLL._replace(of_fitness=wide, plain=False)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wider", module)
    plugins.trust("wider:WIDER")
    es = {"readout": "perturbed", "update": "threshold", "population": 64, "segment_length": 4}
    model, noise = ModelConfig(architecture="egg", width=32, layers=1), np.random.default_rng(0)
    shares = []
    for votes, scale in (("eggroll", 1), ("wider:WIDER", 16)):
        found = recipe.of(Config(model=model, es=EsConfig(votes=votes, **es)), 64)  # type: ignore[arg-type]
        state, specs = evolve.initial(found), dict(params.flatten(found.model.specs.network))
        deviation = 256 * 32**0.5  # of plain votes of 32 pairs, pure noise
        sums = {
            path: jnp.asarray(noise.normal(0, deviation, spec.full_shape).round(), jnp.int32)
            for path, spec in specs.items()
            if spec.role is not params.Role.VECTOR
        }
        sums |= {path: jnp.zeros(specs[path].full_shape, jnp.int32) for path in specs.keys() - sums}
        result = PopulationResult(
            scores_P=jnp.zeros(64, jnp.int32),
            fitness_I=jnp.ones(32, jnp.int8),
            members={},
            votes={path: scale * leaf for path, leaf in sums.items()},
            tables=Tables(),
        )
        clock = Clock(jnp.uint32(0), jnp.uint32(0))
        moved, _ = evolve.moved(found, state, result, clock, evolve.values(found, 0))
        changed = np.asarray(moved["embedding"] != state.network["embedding"])
        shares.append(changed.mean() / found.es.alpha)
    assert all(0.7 < share < 1.3 for share in shares), shares


@pytest.mark.parametrize(
    "votes, given, problem",
    [
        ("unit", 0, "gives no Use of layers/input; add it to the uses of its Activity"),
        ("unit", 1, "gives no effect of layers/input, which es.votes unit needs; add it to its"),
        ("local", 2, "gives no responses of layers/input, which es.votes local needs; add it to"),
    ],
)
def test_an_activity_that_lacks_something_is_refused(votes: Any, given: int, problem: str) -> None:
    """By the path of its tensor, when the step is traced; `given`: fields of its Use."""
    es = EsConfig(votes=votes, readout="exact")
    found = recipe.of(Config(model=gru_model().settings, es=es), 256)  # type: ignore[arg-type]
    whole = [jnp.zeros((2, 4), jnp.int8)] * 3
    uses = {path: Use(*whole) for path in found.model.specs.by_path()}
    token_votes._checked(found, uses)
    uses.pop("layers/input")
    if given:
        uses["layers/input"] = Use(*whole[:given])
    with pytest.raises(UserError, match=f"the architecture .*{problem}"):
        token_votes._checked(found, uses)


def test_a_state_named_context_is_refused() -> None:
    """The context tables use the name: in JAX, and in the NumPy runtime of an export."""
    model = gru_model()
    state = {"context": jnp.zeros((1, 1, 1), jnp.int8)}
    named = GRU._replace(initial_state=lambda model, batch: state)
    vars(model)["architecture"] = named
    with pytest.raises(UserError, match="has a state named context"):
        model.initial_state(1)
    loaded = types.SimpleNamespace(
        architecture=named, config={"model": {}}, tables=[1], direct=[1], words=[], cache=[]
    )
    with pytest.raises(runtime.ExportError, match="has a state named context"):
        runtime.Model.initial_state(loaded, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "memory",
    [
        lambda spec: {"weights": jnp.zeros(spec.full_shape, jnp.int8)},
        lambda spec: {"means": jnp.zeros((), jnp.int32)},
    ],
)
def test_a_memory_that_cannot_be_kept_is_refused(memory: Callable[..., Any]) -> None:
    """One that a checkpoint has something else under, or of another shape than its tensor."""
    from int_lm.method.update.carry import CARRY

    model = gru_model(width=16, layers=1)
    settings = Config(model=model.settings, es=EsConfig(population=8, segment_length=4))  # type: ignore[arg-type]
    wrong = dataclasses.replace(recipe.of(settings, 256), update=CARRY._replace(memory=memory))
    with pytest.raises(
        UserError, match="of dense, which must have the tensor's shape, and another"
    ):
        evolve.abstract(wrong)


def test_the_runtime_bounds_the_dots_of_a_plug_in() -> None:
    """By its own shapes: this network has no feed-forward width, but 3 D rows of D inputs."""
    form = {"gru": export.numpy_forms(NAMES["architecture"])[NAMES["architecture"]]}
    config = {
        "model": {"architecture": "gru", "width": 30_000, "layers": 1, "ffn_multiple": 1},
        "vocab_size": 256,
        "tokenizer": {"vocab_size": 256},
    }
    with pytest.raises(runtime.ExportError, match="90000 inputs"):
        runtime.expected_tensors(config, form)
    config["model"]["width"] = 20_000
    config["model"]["ffn_multiple"] = 60_000
    assert runtime.expected_tensors(config, form)["dense"] == ("I8", [20_000, 20_000])


@pytest.mark.parametrize(
    "change, problem",
    [
        (("+ 127) * un) >> 8", "+ 127) * un) >> 7"), "computes other logits than the architecture"),
        (("import math\n", "import math\n\nimport jax\n"), "gru_numpy.py imports jax; an export"),
        (("import math\n", "import math\n\nfrom . import gru\n"), "imports .; an export holds"),
    ],
)
def test_a_wrong_network_for_numpy_is_not_exported(
    change: tuple[str, str], problem: str, tmp_path: Path, monkeypatch
) -> None:
    """Nothing is written of a network that NumPy would compute otherwise, or not at all."""
    from int_lm.run import Run
    from tokenization import ByteTokenizer
    from tokenization.interface import identity

    package = f"wrong_{abs(hash(change))}"
    shutil.copytree(TESTS / "plugins", tmp_path / package)
    form, code = tmp_path / package / "gru_numpy.py", tmp_path / package / "gru.py"
    assert change[0] in form.read_text()
    form.write_text(form.read_text().replace(*change))
    code.write_text(code.read_text().replace("plugins.gru_numpy", f"{package}.gru_numpy"))
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.trust(name := f"{package}.gru:GRU")
    settings = Config(model=ModelConfig(architecture=name, width=16, layers=1))
    found = recipe.of(settings, 256)
    tokenizer = ByteTokenizer()
    tokenizer.save(tmp_path / "tokenizer")
    run = Run(settings, found, 1, random_weights(found.model), identity(tokenizer), "5" * 64)
    with pytest.raises(UserError, match=problem):
        export.export_model(run, tmp_path / "out", tokenizer_directory=tmp_path / "tokenizer")
    assert not (tmp_path / "out").exists()


def test_gru_is_the_value_that_tests_import() -> None:
    """What the configuration names is no copy."""
    plugins.trust(NAMES["architecture"])
    assert plugins.resolve("architecture", NAMES["architecture"], Architecture) is GRU
