"""`data.gather`: which files of a machine become documents, and what is written."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from data import gather
from data.sources import read_documents
from int_lm.config import DataConfig
from int_lm.errors import UserError

TEXT = b"A page about the first of many subjects.\nIt goes on for a second line.\n"
SOURCE = b"def first(value: int) -> int:\n    return value + len('a name')\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A directory with two files of text, and one file for every reason to leave one out."""
    root = tmp_path / "share"
    files = {
        "doc/a.txt": TEXT,
        "doc/b.py.gz": gzip.compress(SOURCE),
        "doc/copy": TEXT,
        "doc/nearly": TEXT + b"And one line that is new here.\n",
        "doc/empty": b"",
        "doc/binary": b"text\0" * 9,
        "doc/latin1": "caf\xe9 ".encode("latin-1") * 9,
        "doc/numbers": b"1.5 2.25 3.125\n" * 9,
        "doc/drawing.svg": b"<svg>words and words</svg>",
        "doc/wide.js": b"word " * gather.LINE_BYTES,
        "doc/made.h": b"/* Do not edit. */ words of a program",
        "doc/damaged.gz": gzip.compress(TEXT[::-1])[:-9],
        "doc/large": b"one line of many\n" * (gather.FILE_BYTES // 16),
        "man/de/man1/x.1": b"Eine Seite in einer anderen Sprache als der ersten.\n",
        "man/man1/x.1": b"A manual page whose text is in English.\n",
    }
    for name, contents in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    return root


def _written(out: Path) -> list[bytes]:
    return [
        document.text for document in read_documents(DataConfig(source="json", path=(str(out),)))
    ]


def test_text_of_people_is_kept_and_everything_else_is_told(
    machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file is kept or counted for its own reason, and the same files give the same bytes.

    Also where they are written beside what is read: neither the file before nor a partial one,
    which a kill left, is text or counted.
    """
    out, again = tmp_path / "a.jsonl.zst", machine / "b.jsonl.zst"
    gather.main([str(machine), "--out", str(out)])
    told = capsys.readouterr().out
    assert _written(out) == [TEXT, SOURCE, (machine / "man/man1/x.1").read_bytes()]
    for what, count in {
        "most of whose lines came before": 2,
        "empty files": 1,
        "not UTF-8 text": 2,
        "fewer letters": 1,
        "endings of their names": 1,
        "lines above": 1,
        "say a program wrote them": 1,
        "cannot be read": 1,
        "above 1,048,576 bytes": 1,
        "other languages": 1,
    }.items():
        [line] = [
            line for line in told.splitlines() if line.startswith("left out") and what in line
        ]
        assert f": {count} (first: {machine}" in line, line
    (machine / ".b.jsonl.zst.partial-1").write_bytes(TEXT)
    again.write_bytes(out.read_bytes())
    gather.main([str(machine), "--out", str(again), "--overwrite"])
    assert again.read_bytes() == out.read_bytes()
    differ = [set(text.splitlines()) for text in (told, capsys.readouterr().out)]
    assert {line.split(":")[0] for line in differ[0] ^ differ[1]} == {str(out), str(again)}


def test_long_files_are_cut_at_line_ends(machine: Path, tmp_path: Path) -> None:
    """The pieces of a file are all of it."""
    out = tmp_path / "a.jsonl.zst"
    gather.main([str(machine / "doc"), "--out", str(out), "--document_bytes", "50"])
    first, second = TEXT.splitlines(keepends=True)
    assert _written(out)[:2] == [first, second]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "{tmp}/x.jsonl"], "expected a name that ends with .jsonl.zst"),
        (["--out", "{tmp}/x.jsonl.zst", "{tmp}/none"], "none is no directory"),
        (["--out", "{tmp}/there.jsonl.zst", "{tmp}"], "exists already"),
        (["--out", "{tmp}/folder.jsonl.zst", "{tmp}", "--overwrite"], "is no file"),
        (["--out", "{tmp}/x.jsonl.zst", "{tmp}/void"], "there is no text in"),
        (["--out", "{tmp}/x.jsonl.zst", "{tmp}", "--document_bytes", "-1"], "must be 0 or more"),
    ],
    ids=["name", "directory", "exists", "folder", "void", "size"],
)
def test_mistakes_write_nothing(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, and the files of the directory are those that were there.

    Where there is no text, what was left out is told; nothing is read for a file that cannot be.
    """
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "of\nnothing").write_bytes(b"")
    (tmp_path / "folder.jsonl.zst").mkdir()
    (tmp_path / "there.jsonl.zst").write_bytes(b"kept")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=sentence):
        gather.main([argument.format(tmp=tmp_path) for argument in arguments])
    assert sorted(tmp_path.rglob("*")) == before
    told = capsys.readouterr().out
    assert ("left out empty files: 1" in told) == ("no text" in sentence) == ("/of\\nn" in told)
    assert (tmp_path / "there.jsonl.zst").read_bytes() == b"kept"


def test_directories_of_this_machine_are_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not there is left out, and so is a second name of the same directory."""
    there, link = tmp_path / "there", tmp_path / "link"
    there.mkdir()
    link.symlink_to(there)
    monkeypatch.setattr(gather, "ROOTS", (str(there), str(link), str(tmp_path / "absent")))
    assert gather.roots()[0] == str(there)
    assert not {str(link), str(tmp_path / "absent")} & set(gather.roots())


def test_directories_without_permission_are_counted(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other users' directories do not end the search."""

    def walk(root: str, onerror: Callable[[OSError], None]):
        onerror(PermissionError(13, "Permission denied", f"{root}/private"))
        yield root, [], ["a.txt"]

    monkeypatch.setattr("data.listed.os.walk", walk)
    tally = gather.Tally()
    [(_, document)] = gather.documents([str(machine / "doc")], 0, tally, machine / "out")
    assert document and document.text == TEXT
    assert list(tally.state()) == ["left out directories that cannot be read"]
