"""Sentences: counted words, flags told to callers from Python, failures of the file system."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import eval as eval_command
import tokenization
from data import tasks
from int_lm import errors
from int_lm.errors import UserError, counted, in_python
from int_lm.files import atomic
from int_lm.training import runlog
from tokenization import ByteTokenizer
from tokenization.interface import identity


def test_words_are_counted_as_in_english() -> None:
    assert [counted(n, "document") for n in (0, 1, 2000)] == [
        *("0 documents", "1 document", "2,000 documents")
    ]
    assert [counted(n, "process", "processes") for n in (1, 2)] == ["1 process", "2 processes"]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("choose another --run.dir", "choose another run.dir"),
        ("with (--run.init_from a) a", "with (run.init_from a) a"),
        ("replace it with --overwrite", "replace it with overwrite=True"),
        ("trust it, add --plugin a.b:C", 'trust it, add trusted=["a.b:C"]'),
        ("no run; name the directory (--run)", "no run; name the directory"),
        ("a -- b", "a -- b"),
        ("cannot read a/b--c.txt or a/--d", "cannot read a/b--c.txt or a/--d"),
    ],
)
def test_flags_become_fields_for_python(sentence: str, expected: str) -> None:
    assert in_python(sentence) == expected


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space or choose another place"),
        (errno.EROFS, "choose a place that you may read and write"),
        (errno.ENOENT, "check the path"),
        (errno.EIO, "mend that or choose another place"),
    ],
)
def test_advice_fits_the_failure(number: int, advice: str) -> None:
    """And names no flag, because not every command has one for what failed."""
    sentence = errors.explain_os_error(OSError(number, os.strerror(number), "a/b"))
    reason = os.strerror(number)
    assert sentence == f"the file system refused at a/b: {reason}; {advice}"


@pytest.mark.parametrize("flag", ["sorting", "--help"])
def test_output_that_cannot_be_written_is_one_sentence(flag: str, command_environment) -> None:
    """Also a short one, which Python writes when it ends; without a message of Python's own."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    buffered = {k: v for k, v in command_environment.items() if k != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "int_lm.tasks", flag],
            **{"env": buffered, "stdout": full, "stderr": subprocess.PIPE, "text": True},
        )
    assert done.returncode == 2
    assert done.stderr == (
        "int_lm.tasks: error: the file system refused at standard output: No space left on device; "
        "free some space or choose another place\n"
    )


def test_files_that_cannot_be_written_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the names that users gave them, not by those that they have until they are whole."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for name, reason in (("a", "No space left on device"), ("b/a", "No such file or directory")):
        out = tmp_path / name
        with pytest.raises(OSError, match=reason) as caught, atomic.replacement(out) as file:
            file.write(b"text")
        assert f"refused at {out}: {reason};" in errors.explain_os_error(caught.value)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="is no file"), atomic.replacement(pipe):
        pass
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("code", [0, 1, 4])
def test_a_reader_that_went_away_changes_no_exit_code(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of `command | head -c 1`: a hash that differs, or nothing to train, is still told."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as gone, pytest.raises(SystemExit) as ended:
        monkeypatch.setattr(sys, "stdout", gone)
        with errors.reported("int_lm.verify"):
            print("{}")
            sys.exit(code)
    assert ended.value.code == code


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_output_is_no_failure(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of `command >&-` and `command 2>&-`: Python has no `sys.stdout`, or no `sys.stderr`."""
    monkeypatch.setattr(sys, name, None)
    with errors.reported("eval.py"), runlog.Console(steps=1, seconds=0) as console:
        print("said")
        console.note("said")
        console.warn("said")
    with pytest.raises(SystemExit) as ended, errors.reported("eval.py"):
        raise UserError("said")
    getattr(sys, name).close()
    monkeypatch.undo()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert (said.out.count("said"), said.err.count("said")) == (
        (0, 2) if name == "stdout" else (2, 0)
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--pairs", "a", "--data.field", "b"], "--data.field is a field of --text; leave it out"),
        (["--data.source", "json"], "leave it out with the text that was held out"),
        (["--pairs", "a", "--last_word", "b", "--text", "c"], "with --last_word and --pairs"),
        (["--last_word", "a", "--word_perplexity"], "leave it out with --last_word"),
        (["--text", "a", "--data.path", "b"], "says where the text of the run is; leave it out"),
        (["--text", "a", "--told"], "leave it out with --text"),
        (["--data.skip_damaged", "3"], "--data.skip_damaged is of files that are named"),
    ],
)
def test_flags_without_effect_are_refused(flags: list[str], words: str) -> None:
    """Otherwise an evaluation looks as if it had read what they name."""
    with pytest.raises(UserError, match=words):
        eval_command.parse(["--run", "x", *flags])


@pytest.mark.parametrize("kind", ["pairs", "last_word"])
def test_a_file_of_another_form_is_shown_a_line(kind: str, tmp_path: Path) -> None:
    """And not sent to --data.field, which it does not have."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"good": "a", "bad": "b"}\n')
    read = {"pairs": tasks.pairs, "last_word": tasks.last_words}[kind]
    with pytest.raises(UserError, match="it has good, bad; a line is {") as caught:
        read(str(file), ByteTokenizer())
    assert "--data.field" not in str(caught.value)
    with pytest.raises(UserError, match="cannot read .*nope: No such file or directory; check"):
        tasks.prompts(str(tmp_path / "nope"))


def test_the_tokenizer_beside_weights_must_be_theirs(tmp_path: Path) -> None:
    """The sentence names the directory, no run and no flag."""
    own = identity(ByteTokenizer())
    ByteTokenizer().save(tmp_path / "tokenizer")
    assert identity(tokenization.load_own(tmp_path, own)) == own
    with pytest.raises(UserError) as caught:
        tokenization.load_own(tmp_path, {**own, "vocab_size": 300})
    assert str(caught.value) == (
        f"the tokenizer in {tmp_path}/tokenizer is not the one that the weights were trained with: "
        "it has vocab_size 256, not 300; restore it from a copy of the run or the export"
    )
