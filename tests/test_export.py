"""Exports: the same bytes every time, whole or not at all, with a card that says what is known."""

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunCommand
from safetensors.numpy import load_file
from tiny_run import export_tiny_run, tiny_run

import int_lm.run
from int_lm import config, export, runtime
from int_lm.errors import UserError
from int_lm.export import __main__ as command
from int_lm.export.card import model_card
from int_lm.files import digest
from int_lm.method import evolve, recipe
from int_lm.model import hashing, params
from int_lm.model.params import Parameters
from int_lm.run import Run
from tokenization import ByteTokenizer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run() -> Run:
    return tiny_run()


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    ByteTokenizer().save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def changed(run: Run, **leaves: np.ndarray) -> Run:
    """`run` with other weights at some paths."""
    weights = Parameters({**run.weights.network, **leaves}, run.weights.tables)
    return dataclasses.replace(run, weights=weights)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def evaluation_of(run: Run) -> dict[str, Any]:
    """What evaluation.json says after `run` was measured."""
    return {
        "weights_hash": hashing.weights_hash(run.weights),
        "step": run.step,
        "bits_per_byte": 2.71828,
        "interval_95": [2.61234, 2.81234],
        "documents": 12,
        "bytes": 123456,
        "tokens": 123468,
        "token_perplexity": 6.5,
        "byte_perplexity": 6.6,
        "baselines": {"unigram": 4.5, "bigram": 3.4, "gzip": 2.3, "xz": 2.2},
        "text": {"source": "text", "sha256": "7" * 64, "held_out_of": run.text_sha256},
    }


def test_the_weights_come_back(run: Run, tmp_path: Path) -> None:
    """The safetensors library and the runtime read the weights and tables that were exported."""
    directory = export_tiny_run(run, tmp_path)
    tensors, model = load_file(directory / "model.safetensors"), runtime.load(directory)
    weights = run.weights.by_path()
    assert tensors.keys() == {*weights, "tables/exp2", "tables/log2_mantissa"}
    for name, weight in weights.items():
        assert tensors[name].dtype == np.int8
        np.testing.assert_array_equal(tensors[name], weight)
        np.testing.assert_array_equal(model.weights[name], weight)
    assert model.config["weights_hash"] == hashing.weights_hash(run.weights)
    assert (model.config["step"], model.config["vocab_size"]) == (7, 256)
    assert model.config["model"] == config.to_dict(run.config)["model"]
    assert model.config["tokenizer"] == run.tokenizer


def test_a_transposed_weight_is_exported_right(run: Run, tmp_path: Path) -> None:
    """Memory order is not content: the library writes what is not contiguous wrongly."""
    head = run.weights.network["head"]
    transposed = changed(run, head=np.asfortranarray(head))
    assert not transposed.weights.network["head"].flags.c_contiguous
    directory = export_tiny_run(transposed, tmp_path)
    np.testing.assert_array_equal(runtime.load(directory).weights["head"], head)


def test_the_same_run_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    """Two exports, one of them in a fresh process's place, hold the same files bit for bit."""
    first = contents(export_tiny_run(run, tmp_path / "a"))
    network = run.weights.network
    weights = Parameters({name: network[name] for name in reversed(list(network))})
    reordered = dataclasses.replace(run, weights=weights)
    assert list(reordered.weights.network) != list(network)
    second = contents(export_tiny_run(reordered, tmp_path / "b"))
    assert first == second
    assert first.keys() == {
        "model.safetensors",
        "config.json",
        "tokenizer/identity.json",
        "runtime.py",
        "runtime.c",
        "README.md",
        "files.sha256",
    }


def test_an_export_of_an_old_run_has_the_new_name(
    run: Run, tokenizer: Path, tmp_path: Path
) -> None:
    """The tokenizer's file had another library's name, and would end that library's loader."""
    (tokenizer / "identity.json").rename(tokenizer / "tokenizer.json")
    out = export.export_model(run, tmp_path / "out", tokenizer_directory=tokenizer)
    assert [path.name for path in (out / "tokenizer").iterdir()] == ["identity.json"]


def test_the_metadata_are_one_entry(run: Run, tmp_path: Path) -> None:
    """Several entries would be written in the order of a hash that differs from run to run."""
    content = (export_tiny_run(run, tmp_path) / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == ["int_lm"]
    text = header["__metadata__"]["int_lm"]
    assert text == json.dumps(json.loads(text), sort_keys=True)


def test_the_export_is_sealed(run: Run, tmp_path: Path) -> None:
    """`files.sha256` covers every file, so that a change of any is found."""
    directory = export_tiny_run(run, tmp_path)
    assert digest.check(directory)
    assert len((directory / "files.sha256").read_text().splitlines()) == 6 + 1
    (directory / "README.md").write_text("other")
    with pytest.raises(digest.DamagedError, match="README.md"):
        digest.check(directory)


# The card


def test_the_card_states_what_was_measured(run: Run, tokenizer: Path, tmp_path: Path) -> None:
    """With an evaluation of these weights, its figures stand in the card, beside the baselines."""
    directory = export.export_model(
        run, tmp_path / "out", tokenizer_directory=tokenizer, evaluation=evaluation_of(run)
    )
    card = (directory / "README.md").read_text()
    for figure in ("2.7183", "2.6123 to 2.8123", "4.5000", "3.4000", "2.3000", "2.2000", "123,456"):
        assert figure in card
    assert f"sha256 `{'7' * 64}`" in card
    assert "No figures" not in card


@pytest.mark.parametrize(
    "changes",
    [
        None,
        {"weights_hash": "0" * 16},
        {"text": {"source": "text", "sha256": "7" * 64, "held_out_of": "8" * 64}},
        {"text": {"source": "text", "sha256": "7" * 64, "held_out_of": None}},
    ],
    ids=["none", "other weights", "held out of another text", "of a text that was named"],
)
def test_the_card_states_no_other_figures(
    run: Run, tokenizer: Path, tmp_path: Path, changes: dict[str, Any] | None
) -> None:
    """Of other weights, or of what the weights may have seen: it says how to measure them."""
    evaluation = None if changes is None else evaluation_of(run) | changes
    directory = export.export_model(
        run, tmp_path / "out", tokenizer_directory=tokenizer, evaluation=evaluation
    )
    card = (directory / "README.md").read_text()
    assert "No figures on held-out text belong to these weights. `python eval.py --export" in card
    assert "2.7183" not in card


def test_the_card_describes_the_model(run: Run, tmp_path: Path) -> None:
    """Sizes, number of weights, hash and settings are those of the run."""
    directory = export_tiny_run(run, tmp_path)
    card = (directory / "README.md").read_text()
    count = sum(leaf.size for leaf in run.weights.by_path().values())
    size = (directory / "model.safetensors").stat().st_size
    for text in (
        "`egg`, 3 layers of width 24",
        f"# egg, 3 x 24, {count:,} int8 weights\n",
        f"{count:,}, one byte each",
        f"{size:,} bytes",
        hashing.weights_hash(run.weights),
        f"{7 * 1024 * 50:,} (7 steps x 1,024 streams x 50 tokens)",
        "rank 1, rademacher, sigma 2^-4",
    ):
        assert text in card
    assert not re.search(r"\bNone\b|nan|\{|\}", card)
    assert "| alpha |" in card and "learning rate" not in card and "context tables" not in card


def test_the_card_tells_network_and_tables_apart() -> None:
    """Of the default recipe most weights are tables; fitness and alpha have no part in it."""
    settings = config.load(ROOT / "configs" / "quickstart.yaml")
    model = dataclasses.replace(settings.model, direct=(1, 2), direct_bits=8, cache=(3, 5))
    es = dataclasses.replace(settings.es, direct_dropout=0.25)
    settings = dataclasses.replace(settings, model=model, es=es)
    of_run = recipe.of(settings, 300)
    weights = evolve.initial(of_run).weights
    pieces = {"kind": "sentencepiece"}
    run = Run(
        config=settings,
        recipe=of_run,
        step=7,
        weights=weights,
        tokenizer=pieces,
        text_sha256="5" * 64,
    )
    card = model_card(run, {"weights_hash": "0" * 16}, 1, None, {})
    network = params.count(of_run.model.specs.network)
    tables = 2 * 256 * 300 + 3 * 2 * 2 * 32
    assert f"# rwkv, 2 x 64, {network:,} int8 weights and {tables:,} of context tables" in card
    assert f"from the last 1, 2 tokens to the logits: {tables:,} weights" in card
    assert "| document cache | of what followed the last 3, 5 tokens |" in card
    assert "0.5, half-life 200 steps" in card and "over 2,000 steps" in card
    assert "| rate of context tables | 12 at the first reading of a row" in card
    assert "left out | of words and of more than 3 tokens, for 0.25 of the streams |" in card
    assert "| fitness |" not in card and "| alpha |" not in card and "| trust |" not in card
    settings = dataclasses.replace(settings, es=dataclasses.replace(es, pooled=True))
    of_pool = model_card(
        dataclasses.replace(run, config=settings), {"weights_hash": ""}, 1, None, {}
    )
    assert "| trust | network and context tables learnt apart, each from its own" in of_pool
    assert "tokenizer/tokenizer.model" in card and 'b"The "' not in card


def test_the_card_s_snippet_runs(run: Run, tmp_path: Path, run_command: RunCommand) -> None:
    """The lines of the card, pasted into Python in the export's directory, work."""
    directory = export_tiny_run(run, tmp_path)
    card = (directory / "README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet
    result = run_command("-c", snippet[1], cwd=directory, env={"PYTHONPATH": ""})
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"b.*\n[0-9.]+ bits\n", result.stdout)
    assert result.stderr == ""


def test_the_snippet_of_a_model_of_pieces_runs(tmp_path: Path, run_command: RunCommand) -> None:
    """With ids in place of bytes."""
    run = tiny_run(257)
    directory = export_tiny_run(run, tmp_path)
    run = dataclasses.replace(run, tokenizer=run.tokenizer | {"kind": "sentencepiece"})
    card = model_card(run, {"weights_hash": "0" * 16}, 1, None, {})
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet
    result = run_command("-c", snippet[1], cwd=directory, env={"PYTHONPATH": ""})
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"\[[0-9, ]+\]\n[0-9.]+ bits\n", result.stdout)


# What is in the way


def full(path: Path) -> None:
    path.mkdir()
    (path / "letter.txt").write_text("dear")


@pytest.mark.parametrize("make", [full, lambda path: path.write_text("x")])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_an_export_is_never_replaced(
    run: Run, tokenizer: Path, tmp_path: Path, make: Callable[[Path], Any], overwrite: bool
) -> None:
    """A file, or a directory of other things, stays, --overwrite or not."""
    out = tmp_path / "out"
    make(out)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="exists and is not an export; choose another --out"):
        export.export_model(run, out, tokenizer_directory=tokenizer, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_an_export_is_replaced_only_when_asked(run: Run, tokenizer: Path, tmp_path: Path) -> None:
    """Without --overwrite an export stays; with it, the new one takes its place, alone."""
    out = export_tiny_run(tiny_run(extreme=True), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="already holds an export; replace it with --overwrite"):
        export.export_model(run, out, tokenizer_directory=tokenizer)
    assert contents(tmp_path) == before
    (out / "__pycache__").mkdir()  # left by `import runtime`
    export.export_model(run, out, tokenizer_directory=tokenizer, overwrite=True)
    np.testing.assert_array_equal(runtime.load(out).weights["head"], run.weights.network["head"])
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer", "export"}


def test_files_beside_an_export_are_not_lost(run: Run, tokenizer: Path, tmp_path: Path) -> None:
    """What the user has put into an export keeps it from being replaced."""
    out = export_tiny_run(run, tmp_path)
    (out / "notes.txt").write_text("dear")
    with pytest.raises(UserError, match="also holds notes.txt, which would be lost"):
        export.export_model(run, out, tokenizer_directory=tokenizer, overwrite=True)


def test_an_empty_directory_is_filled(run: Run, tokenizer: Path, tmp_path: Path) -> None:
    """A directory made beforehand, and parents not made at all, are fine."""
    (tmp_path / "made").mkdir()
    for out in (tmp_path / "made", tmp_path / "a" / "b"):
        runtime.load(export.export_model(run, out, tokenizer_directory=tokenizer))


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_export_leaves_no_trace(
    run: Run,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
) -> None:
    """A full disk or an interrupt midway: no export, no debris, and an older one as it was."""
    older = export_tiny_run(tiny_run(extreme=True), tmp_path)
    before = contents(tmp_path)

    def seal(_: Path) -> None:
        raise fault

    monkeypatch.setattr(digest, "seal", seal)
    for out, overwrite in ((older, True), (tmp_path / "new", False)):
        expected = UserError if isinstance(fault, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            export.export_model(run, out, tokenizer_directory=tokenizer, overwrite=overwrite)
        if expected is UserError:
            assert str(caught.value) == (
                f"cannot write the export {out}: No space left on device; "
                "free some space or choose another --out"
            )
    assert contents(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer", "export"}


def test_the_older_export_returns_if_the_new_cannot_take_its_name(
    run: Run, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that refuses the last renaming leaves the older export in its place."""
    out = export_tiny_run(tiny_run(extreme=True), tmp_path)
    before, rename = contents(tmp_path), Path.rename

    def stubborn(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stubborn)
    with pytest.raises(UserError, match="Permission denied"):
        export.export_model(run, out, tokenizer_directory=tokenizer, overwrite=True)
    assert contents(tmp_path) == before


# What cannot be exported


def test_a_foreign_tokenizer_is_refused(run: Run, tokenizer: Path, tmp_path: Path) -> None:
    """Another tokenizer than the run's, or none: one sentence each."""
    path = tokenizer / "identity.json"
    identity = json.loads(path.read_text())

    def problem(run: Run) -> str:
        with pytest.raises(UserError) as caught:
            export.export_model(run, tmp_path / "out", tokenizer_directory=tokenizer)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    path.write_text(json.dumps({**identity, "kind": "sentencepiece"}))
    assert "it has kind 'sentencepiece', not 'bytes'" in problem(run)
    path.write_text("{")
    assert f"cannot read the tokenizer {path}: it is damaged" in problem(run)
    path.unlink()
    assert f"cannot read the tokenizer {path}: No such file" in problem(run)


def test_a_weight_of_minus_128_is_never_exported(run: Run, tokenizer: Path, tmp_path: Path) -> None:
    """What the runtime would refuse is refused when it is written."""
    bad = changed(run, final_norm=np.full(24, -128, np.int8))
    with pytest.raises(UserError, match="final_norm holds -128"):
        export.export_model(bad, tmp_path / "out", tokenizer_directory=tokenizer)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer"}


# The command


def test_the_command_exports_a_run(
    run: Run,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Tokenizer and evaluation come from the run's directory; the next command is printed."""
    paths = int_lm.run.Paths(tmp_path / "run")
    shutil.copytree(tokenizer, paths.tokenizer)
    paths.evaluation.write_text(json.dumps(evaluation_of(run)))
    monkeypatch.setattr(int_lm.run, "open_run", lambda root, step, say: run)
    out = tmp_path / "out"
    command.main(["--run", str(paths.root), "--out", str(out)])
    assert runtime.load(out).config["step"] == 7
    assert "2.7183" in (out / "README.md").read_text()
    assert f"python -m int_lm.sample --export {out}" in capsys.readouterr().out
    damaged = {**evaluation_of(run), "interval_95": [1]}, {"weights_hash": "0"}, []
    for text in ("{", *map(json.dumps, damaged)):
        paths.evaluation.write_text(text)
        with pytest.raises(UserError, match="evaluation.json is damaged; run eval.py again"):
            command.main(["--run", str(paths.root), "--out", str(out), "--overwrite"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x"], "name the run to export with --run DIR"),
        (["--run", "."], "the following arguments are required: --out"),
        (["--run", "nowhere", "--out", "x"], "no run at nowhere; name the directory"),
        (["--run", ".", "--out", "x", "--overwite"], "did you mean --overwrite?"),
        (["--run", ".", "--out", "file"], "file exists and is not an export"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every mistake on the command line is one sentence, told before a run is opened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(int_lm.run, "open_run", lambda *_, **__: pytest.fail("opened"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=re.escape(message)):
        command.main(arguments)


def test_help_and_mistakes_need_no_jax(tmp_path: Path, run_command: RunCommand) -> None:
    """With a jax that cannot be imported, --help works and a mistake exits with code 2."""
    (tmp_path / "jax.py").write_text("raise ImportError('jax was imported')\n")
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(export.__file__).parents[2]}"}

    def run_it(*arguments: str) -> subprocess.CompletedProcess:
        return run_command("-m", "int_lm.export", *arguments, env=environment)

    shown = run_it("--help")
    assert shown.returncode == 0, shown.stderr
    assert "--overwrite" in shown.stdout
    refused = run_it("--run", "nowhere", "--out", "x")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(r"int_lm\.export: error: no run at nowhere; .*\n", refused.stderr)
