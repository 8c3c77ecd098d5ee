"""A run and its text: found by digest wherever it is, and never called held out if it is another.

One tiny run of a text file and its export stand for all; each test has a copy of them.
"""

import json
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_command import train_arguments, write_text

import eval as eval_command
import int_lm
import train
from data import split
from data.documents import Document
from data.text import cut
from int_lm import export, runtime
from int_lm.errors import UserError
from int_lm.export import __main__ as export_command
from int_lm.verify import __main__ as verify_command
from tokenization import ByteTokenizer

SHORT: dict[str, object] = {"run_dot_steps": 4, "run_dot_eval_every": 0, "run_dot_sample_tokens": 0}
SHORT["es_dot_schedule"] = "inverse"  # so that run.steps changes no weight


def train_here(**changes: object) -> bool:
    """Train, or go on with, `run` on words.txt in the current directory."""
    flags = {"data_dot_shards": "shards", **SHORT, **changes}
    text = flags.pop("text", "words.txt")
    return train.train(train.parse(train_arguments(Path(str(text)), Path("run"), **flags))[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a text, its shards, a run and its export."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_text(Path("words.txt"))
        assert train_here()
        export_command.main(["--run", "run", "--out", "export"])
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `trained` that is the current directory."""
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(scope="module")
def undisturbed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hash of the weights after step 8 of the run, from the text where it always was."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("undisturbed") / "here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train_here(run_dot_steps=8)
        return last_hash()


@pytest.fixture
def figures(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """`eval.py` with arguments and `--json`, in this process."""

    def run(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        eval_command.main([*map(str, arguments), "--json"])
        return json.loads(capsys.readouterr().out)

    return run


def kept(path: Path = Path("run")) -> dict[str, Any]:
    return json.loads((path / "evaluation.json").read_text())


def in_front(path: Path) -> None:
    path.write_text("one line more\n" + path.read_text())


def cut_off(path: Path) -> None:
    path.write_text(path.read_text()[:-9000])


def removed(path: Path) -> None:
    path.unlink()


CHANGES = [in_front, cut_off, removed]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("subject", [("--run", "run"), ("--export", "export")])
def test_what_was_held_out_is_evaluated_whatever_became_of_the_text(
    here: Path, figures, change, subject
) -> None:
    """The shards have it: the same bytes, the same figures as at the end of training."""
    before = kept()
    change(here / "words.txt")
    found = figures(*subject)
    assert found["text"] == before["text"] and found["bits_per_byte"] == before["bits_per_byte"]
    assert len(list(Path("shards").iterdir())) == 1  # nothing was prepared anew
    assert kept() == before


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("subject", [("--run", "run"), ("--export", "export")])
def test_other_text_is_not_called_held_out(here: Path, figures, change, subject) -> None:
    """Without the shards, text that is not the run's is refused, and no figure is kept."""
    shutil.rmtree("shards")
    change(here / "words.txt")
    before = kept()
    with pytest.raises(UserError, match="that was trained on|not what the model was trained on"):
        figures(*subject)
    assert kept() == before


@pytest.mark.parametrize("subject", [("--run", "run"), ("--export", "export")])
def test_text_and_shards_may_be_elsewhere(here: Path, figures, monkeypatch, subject) -> None:
    """From another directory, of moved shards, and prepared anew from moved text."""
    before = kept()["text"]
    monkeypatch.chdir(here.parent)
    kind, name = subject
    if kind == "--run":
        assert figures(kind, here / name)["text"] == before
    Path("here/shards").rename("moved")
    assert figures(kind, here / name, "--data.shards", "moved")["text"] == before
    shutil.rmtree("moved")
    (here / "words.txt").rename("new.txt")
    with pytest.raises(UserError, match="words.txt is not there, and no token shards"):
        figures(kind, here / name)
    found = figures(kind, here / name, "--data.path", "new.txt")["text"]
    assert (found["sha256"], found["source"]) == (before["sha256"], "text: new.txt")
    Path("other.txt").write_text(Path("new.txt").read_text()[:-50])
    with pytest.raises(UserError, match="not what the model was trained on"):
        figures(kind, here / name, "--data.path", "other.txt")


def test_damaged_shards_are_made_again_or_named(here: Path, figures, capsys) -> None:
    """Of the text that is still the same; if that is gone, too, the sentence says both."""
    [shard] = Path("shards").glob("*/00000")
    tokens = shard / "tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-1] + b"?")
    (here / "words.txt").rename("new.txt")
    with pytest.raises(UserError, match="words.txt is not there"):
        figures("--run", "run")
    assert "the token shard" in capsys.readouterr().err
    assert figures("--run", "run", "--data.path", "new.txt")["text"]["sha256"]


def test_figures_say_which_text_they_are_of(here: Path, figures, capsys) -> None:
    """In the table, in JSON and in the model card; text that is named is not called held out."""
    held_out = figures("--run", "run")["text"]
    assert held_out["source"] == "text: words.txt" and len(held_out["held_out_of"]) == 64
    named = figures("--run", "run", "--text", "words.txt")["text"]
    assert named["source"] == "words.txt" and named["held_out_of"] is None
    assert named["trained_on"]["documents"] > 0
    assert kept()["text"] == held_out
    eval_command.main(["--run", "run"])
    assert f"held out of text: words.txt   sha256 {held_out['sha256'][:16]}" in (
        capsys.readouterr().out
    )
    eval_command.main(["--export", "export", "--text", "words.txt"])
    assert "bytes) were trained on: words.txt" in capsys.readouterr().out
    assert f"held out of text files (sha256 `{held_out['sha256']}`)" in (
        Path("export/README.md").read_text()
    )
    texts = ["Some text."]
    own = [int_lm.load(name).evaluate(texts)["text"] for name in ("run", "export")]
    assert own[0] == own[1] and own[0]["held_out_of"] is None


@pytest.mark.parametrize("subject", [("--run", "run"), ("--export", "export")])
def test_named_text_that_was_trained_on_is_told(here: Path, figures, capsys, subject) -> None:
    """Document by document, from any file and format; where nothing is known, that is said."""
    data = json.loads(Path("export/config.json").read_text())["data"]
    pieces = cut(Document("", Path("words.txt").read_bytes()), data["document_bytes"])
    held = [split.is_heldout(piece.text, data["holdout"]) for piece in pieces]
    assert any(held[:12]) and not all(held[:12])
    texts = [piece.text.decode() for piece in pieces[:12]] + ["other"]
    Path("mixed.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    size = sum(len(p.text) for p, out in zip(pieces[:12], held[:12], strict=True) if not out)
    known = {"documents": 12 - sum(held[:12]), "bytes": size}
    found = figures(*subject, "--text", "mixed.jsonl")["text"]
    assert found["trained_on"] == known and found["held_out_of"] is None
    Path("new.txt").write_text("Some text that nobody read.")
    Path("shards").rename("moved")
    eval_command.main([*subject, "--text", "new.txt", "--data.shards", "moved"])
    assert "named; no document of it is one of the training text's" in capsys.readouterr().out
    eval_command.main([*subject, "--text", "new.txt"])
    assert "named, perhaps trained on: new.txt" in capsys.readouterr().out


def of_other_weights(figures: dict[str, Any]) -> None:
    figures["weights_hash"] = "0" * 16


def of_other_text(figures: dict[str, Any]) -> None:
    figures["text"]["held_out_of"] = "0" * 64


def of_named_text(figures: dict[str, Any]) -> None:
    figures["text"]["held_out_of"] = None


def of_an_earlier_version(figures: dict[str, Any]) -> None:
    del figures["text"]


@pytest.mark.parametrize(
    "forge", [of_other_weights, of_other_text, of_named_text, of_an_earlier_version]
)
def test_a_card_shows_no_figures_of_other_text(here: Path, forge) -> None:
    """Of other weights, of text nobody knows to be held out, or from before that was said."""
    forged = kept()
    forge(forged)
    (here / "run" / "evaluation.json").write_text(json.dumps(forged))
    export_command.main(["--run", "run", "--out", "again"])
    card = Path("again/README.md").read_text()
    assert "No figures on held-out text" in card
    assert f"{forged['bits_per_byte']:.4f}" not in card


def test_an_export_that_does_not_know_its_text_calls_none_held_out(
    here: Path, figures, monkeypatch
) -> None:
    """As of an earlier version; `--text` works."""
    load = export.load

    def earlier(directory: Path) -> runtime.Model:
        model = load(directory)
        del model.config["text_sha256"]
        return model

    monkeypatch.setattr(export, "load", earlier)
    with pytest.raises(UserError, match="export the run again, or name text with --text"):
        figures("--export", "export")
    assert figures("--export", "export", "--text", "words.txt")["bytes"] > 0


@pytest.mark.parametrize("gone", [False, True])
def test_a_run_goes_on_with_its_text_elsewhere(
    here: Path, undisturbed: str, capsys, gone: bool
) -> None:
    """One sentence says so, and the weights are those of the run that nothing disturbed."""
    (here / "words.txt").rename("new.txt")
    if gone:
        assert train_here(run_dot_steps=8)
        expected = "words.txt is not there any more; going on with the run's token shards in shards"
    else:
        assert train_here(run_dot_steps=8, text="new.txt")
        expected = "the same text and tokenizer at another place: data.path was words.txt, now new"
    captured = capsys.readouterr()
    assert expected in captured.out + captured.err
    assert last_hash() == undisturbed


def last_hash() -> str:
    return json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["weights_hash"]


def test_a_run_goes_on_without_its_tokenizers_directory(here: Path, capsys) -> None:
    """Its own copy is used; another tokenizer in that place is refused."""
    ByteTokenizer().save(here / "pieces")
    assert train_here(data_dot_tokenizer="pieces", run_dot_dir="other")
    (here / "pieces").rename("moved")
    flags: dict[str, Any] = {"run_dot_dir": "other", "run_dot_steps": 6}
    assert train_here(data_dot_tokenizer="pieces", **flags)
    assert "pieces is not there any more; going on with the run's other" in capsys.readouterr().err
    assert not train_here(data_dot_tokenizer="moved", **flags)
    assert "data.tokenizer was pieces, now moved" in capsys.readouterr().err


def test_other_text_at_another_place_is_refused(here: Path) -> None:
    """With both places and both digests."""
    write_text(here / "other.txt", seed=1)
    expected = "data.path was words.txt, now other.txt.* with sha256"
    with pytest.raises(UserError, match=expected):
        train_here(run_dot_steps=8, text="other.txt")


def test_a_run_is_verified_from_its_shards(here: Path, monkeypatch, capsys) -> None:
    """The text is gone, and the current directory is another one."""
    (here / "words.txt").unlink()
    monkeypatch.chdir(here.parent)
    verify_command.main([str(here / "run"), "--step", "0"])
    assert "all 2 logged hashes are right" in capsys.readouterr().out
    shutil.rmtree(here / "shards")
    with pytest.raises(UserError, match="words.txt is not there"):
        verify_command.main([str(here / "run"), "--step", "0"])


def library(folder: Path, version: int) -> None:
    """A standard library of a Python: modules, some of which are others in the next version."""
    folder.mkdir()
    for number in range(40):
        text = f"# module {number}{f' of {version}' if number % 4 == 0 else ''}\n" + "pass\n" * 200
        (folder / f"m{number}.py").write_text(text)


@pytest.mark.slow
def test_the_library_of_another_python(tmp_path: Path, monkeypatch, figures, capsys) -> None:
    """What was held out of the first is evaluated, from the shards or not at all; training goes on
    with it."""
    monkeypatch.chdir(tmp_path)
    for version in (1, 2):
        library(tmp_path / f"python{version}", version)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python1"))

    def train_on_it(steps: int) -> bool:
        changes: dict[str, object] = {**SHORT, "data_dot_shards": "shards", "run_dot_steps": steps}
        flags = train_arguments(Path("x"), Path("run"), **changes)
        at = flags.index("--data.path")
        return train.train(train.parse([*flags[:at], *flags[at + 2 :]])[1])

    assert train_on_it(4)
    before = kept()["text"]
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python2"))
    assert figures("--run", "run")["text"] == before
    assert train_on_it(6) and kept()["text"] == before
    assert "the standard library of this Python is not that of the run" in capsys.readouterr().out
    shutil.rmtree("shards")
    with pytest.raises(UserError, match="not what the model was trained on"):
        figures("--run", "run")
    with pytest.raises(UserError, match="training text with sha256"):
        train_on_it(8)


@pytest.mark.parametrize("change", ["added", "removed", "edited"])
def test_files_of_a_directory_may_not_change(here: Path, figures, change: str) -> None:
    """A file more, one less, one edited: what was held out is read from shards, or refused."""
    (here / "books").mkdir()
    for number in range(3):
        write_text(here / "books" / f"{number}.txt", seed=number)
    assert train_here(text="books", run_dot_dir="other")
    before = kept(Path("other"))["text"]
    if change == "added":
        write_text(here / "books" / "3.txt", seed=3)
    elif change == "removed":
        (here / "books" / "1.txt").unlink()
    else:
        in_front(here / "books" / "1.txt")
    assert figures("--run", "other")["text"] == before
    with pytest.raises(UserError, match="training text with sha256"):
        train_here(text="books", run_dot_dir="other", run_dot_steps=6)
    shutil.rmtree("shards")
    with pytest.raises(UserError, match="not what the model was trained on"):
        figures("--run", "other")


# -- Mixtures --------------------------------------------------------------------------------------

MIXTURE = """
data:
  shards: shards
  document_bytes: 1024
  mixture:
    - {{name: old, source: text, path: [{old}], weight: {weight}}}
    - {{name: new, source: text, path: [{new}], field: {field}}}
run: {{dir: mixed, steps: {steps}}}
"""


def mixed(steps: int, old: str = "words.txt", weight: float = 1, **changes: str) -> bool:
    """Train on words.txt and other.txt, as MIXTURE says."""
    values = {"new": "other.txt", "field": "text"} | changes
    text = MIXTURE.format(steps=steps, old=old, weight=weight, **values)
    Path("mixed.yaml").write_text(text)
    flags = train_arguments(Path("unused"), Path("mixed"), **{**SHORT, "run_dot_steps": steps})
    for name in ("--data.path", "--data.shards", "--data.document_bytes"):
        at = flags.index(name)
        del flags[at : at + 2]
    return train.train(train.parse(["--config", "mixed.yaml", *flags])[1])


@pytest.mark.slow
def test_a_part_of_a_mixture_that_is_read_no_longer(here: Path, figures, capsys) -> None:
    """Weight 0, also where its file is gone; what differs is told before anything is prepared."""
    write_text(here / "other.txt", seed=1)
    assert mixed(4)
    prepared = sorted(Path("shards").rglob("*"))
    write_text(here / "third.txt", seed=2)
    with pytest.raises(UserError, match="data.mixture.new.field 'text', now 'body'"):
        mixed(8, old="third.txt", field="body")
    assert sorted(Path("shards").rglob("*")) == prepared
    (here / "words.txt").unlink()
    capsys.readouterr()
    assert mixed(8, weight=0)
    captured = capsys.readouterr()
    assert "words.txt is not there any more; going on with the run's token shards" in captured.out
    assert "hold from step" in captured.err and "they change nothing" in captured.err
    found = figures("--run", "mixed")
    assert found["text"]["source"] == "old: words.txt; new: other.txt"
    assert sorted(found["sources"]) == ["new", "old"]


# -- Nothing to train ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "run is at step 4, and run.steps is 4; raise --run.steps above 4 to go on"),
        ({"run_dot_steps": 2}, "run is at step 4, and run.steps is 2; raise --run.steps above 4"),
        (
            {"run_dot_steps": 9, "run_dot_seconds": 1e-3},
            "of the 0.001 seconds of run.seconds; raise --run.seconds above",
        ),
    ],
)
def test_nothing_to_train_is_said(here: Path, capsys, changes, expected: str) -> None:
    """In one sentence, with exit code 4, and the run stays as it is."""
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    flags = {"data_dot_shards": "shards", **SHORT, **changes}
    with pytest.raises(SystemExit) as caught:
        train.main(train_arguments(Path("words.txt"), Path("run"), **flags))
    assert caught.value.code == 4
    assert expected in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before


def test_a_run_without_its_last_evaluation_is_evaluated(here: Path, capsys) -> None:
    """A kill in the final evaluation left something to do, but nothing to train."""
    before = kept()
    (here / "run" / "evaluation.json").unlink()
    assert train_here(run_dot_steps=2)
    assert "nothing to train" in capsys.readouterr().err
    assert kept() == before and "steps: 4\n" in Path("run/config.yaml").read_text()
    assert not train_here()


@pytest.mark.slow
def test_the_price_of_pruning_is_of_what_was_held_out(
    here: Path,
    figures: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Entries near 0 are 0 in the export; the price is what `eval.py` says, from wherever the run
    is opened; other text has none."""
    assert train_here(
        **{"run_dot_dir": "tables", "model_dot_direct": "1", "model_dot_direct_bits": 8},
        **{"es_dot_readout": "exact", "es_dot_direct_rate": 40.0},
    )
    export_command.main(["--run", "tables", "--out", "whole"])
    capsys.readouterr()
    export_command.main(["--run", "tables", "--out", "pruned", "--prune", "9"])
    whole, pruned = runtime.load("whole"), runtime.load("pruned")
    before, after = (model.weights["direct/context_1"] for model in (whole, pruned))
    small = (abs(before) < 9) & (before != 0)
    assert 0 < small.sum() < (before != 0).sum()
    assert after.tolist() == (before * ~small).tolist()
    said = pruned.config["pruned"]
    assert (said["least"], said["dropped"]) == (9, small.sum())
    assert f"{said['dropped']:,} entries of context tables" in capsys.readouterr().out
    bits = [figures("--export", name)["bits_per_byte"] for name in ("whole", "pruned")]
    assert said["price"] == pytest.approx(bits[1] - bits[0], abs=1e-9) and said["price"] != 0
    monkeypatch.chdir(here.parent)
    export_command.main(["--run", "here/tables", "--out", "elsewhere", "--prune", "9"])
    assert runtime.load("elsewhere").config["pruned"] == said
    monkeypatch.chdir(here)
    shutil.rmtree("shards")
    Path("words.txt").write_text("other\n" + Path("words.txt").read_text())
    with pytest.raises(UserError, match="not what the model was trained on"):
        export_command.main(["--run", "tables", "--out", "other", "--prune", "9"])
    assert not Path("other").exists()
