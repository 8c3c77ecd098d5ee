"""Documents, the held-out split and the token streams."""

import io
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

import data.listed
import data.text
from data.documents import Document
from data.sources import read_documents
from data.split import split
from data.text import cut, find_non_text
from int_lm.config import DataConfig
from int_lm.errors import UserError

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
DOCUMENTS = st.lists(TEXT.map(lambda text: Document("d", text.encode())), min_size=1, max_size=8)


def from_text(*paths: Path | str, document_bytes: int = 0) -> DataConfig:
    return DataConfig("text", tuple(map(str, paths)), document_bytes=document_bytes)


def refusal(config: DataConfig) -> str:
    """The sentence with which reading is refused: one line."""
    with pytest.raises(UserError) as caught:
        read_documents(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Sources


def test_files_and_directories_are_read_in_a_fixed_order(tmp_path: Path) -> None:
    """Named paths in the order given, directories by relative path, hidden and linked ones not."""
    names = ["b/z.txt", "b.txt", "a/10.txt", "a/9.txt", "a/sub/x", ".hidden", ".git/config", "é"]
    for name in random.Random(3).sample(names, len(names)):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(name)
    (tmp_path / "root" / "empty").touch()
    (tmp_path / "root" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    os.mkfifo(tmp_path / "root" / "pipe")
    (tmp_path / "first").write_bytes(b"first\r\n\xef\xbb\xbf")
    documents = read_documents(from_text(tmp_path / "root", tmp_path / "first"))
    root = tmp_path.as_posix() + "/root/"
    expected = ["a/10.txt", "a/9.txt", "a/sub/x", "b.txt", "b/z.txt", "é"]
    assert [document.name for document in documents] == [
        *(root + name for name in expected),
        (tmp_path / "first").as_posix(),
    ]
    assert [document.text.decode() for document in documents[:-1]] == expected
    assert documents[-1].text == b"first\r\n\xef\xbb\xbf"  # not one byte is changed


def test_order_does_not_depend_on_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever order the system lists a directory in, the documents come in the same one."""
    for name in ("a", "b", "c/d", "c/e", "f/g"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    expected = read_documents(from_text(tmp_path))
    walk = os.walk

    def backwards(*arguments, **options):
        for directory, children, files in walk(*arguments, **options):
            children.sort(reverse=True)
            yield directory, children, sorted(files, reverse=True)

    monkeypatch.setattr(data.text.os, "walk", backwards)
    assert read_documents(from_text(tmp_path)) == expected
    assert len(expected) == 5


def test_binary_files_in_directories_are_skipped_and_counted(tmp_path: Path) -> None:
    """An image among the texts does no harm, and the user is told of it once."""
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "c.latin1").write_bytes(b"caf\xe9")
    notices: list[str] = []
    documents = read_documents(from_text(tmp_path), notice=notices.append)
    assert [document.text for document in documents] == [b"text"]
    assert notices == [
        f"left out files that are not UTF-8 text: 2 (first: {tmp_path}/b.png, byte 0x89 is not "
        "UTF-8 at byte 0)"
    ]
    read_documents(from_text(tmp_path / "a.txt"), notice=notices.append)
    assert len(notices) == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"abc\0def", "zero byte at byte offset 3"),
        (b"abc\xe9 def", "byte 0xe9 is not UTF-8 at byte offset 3"),
        (b"ab\xff\0", "byte 0xff is not UTF-8 at byte offset 2"),
        (b"ab\0\xff", "zero byte at byte offset 2"),
        ("überlänge".encode()[:-1] + b"\xe2\x82", "byte 0xe2 is not UTF-8 at byte offset 10"),
        (b"\xed\xa0\x80", "byte 0xed is not UTF-8 at byte offset 0"),  # a lone surrogate
        ("text".encode("utf-16"), "byte 0xff is not UTF-8 at byte offset 0"),
    ],
)
def test_named_files_must_be_text(tmp_path: Path, content: bytes, sentence: str) -> None:
    """A named file that is no text is refused with its name, the place and what to do."""
    path = tmp_path / "file"
    path.write_bytes(content)
    message = refusal(from_text(path))
    assert str(path) in message and sentence in message


def test_missing_and_odd_paths_are_refused(tmp_path: Path) -> None:
    """Missing files, empty names, pipes and directories without text are told apart."""
    assert f"cannot read {tmp_path}/none: No such file" in refusal(from_text(tmp_path / "none"))
    assert "cannot read '': No such file" in refusal(from_text(""))
    assert "embedded null" in refusal(from_text("a\0b"))
    os.mkfifo(tmp_path / "pipe")
    assert f"{tmp_path}/pipe is neither a file nor" in refusal(from_text(tmp_path / "pipe"))
    assert f"directory {tmp_path} holds no text; name" in refusal(from_text(tmp_path))
    (tmp_path / "b").write_bytes(b"\0")
    assert "(1 file in it is not UTF-8 text)" in refusal(from_text(tmp_path))


@pytest.mark.parametrize("inside", [False, True], ids=["named", "in a directory"])
def test_unreadable_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    """A file that may not be read is never passed over in silence."""
    path = tmp_path / "secret.txt"
    path.write_text("text")

    def deny(file: str, mode: str) -> None:
        raise PermissionError(13, "Permission denied", file)

    monkeypatch.setattr(data.listed, "open", deny, raising=False)
    message = refusal(from_text(tmp_path if inside else path))
    assert f"cannot read {path}: Permission denied" in message


def test_unreadable_directories_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that may not be listed is never passed over in silence."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "open.txt").write_text("text")
    scandir = os.scandir

    def deny(path: str):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert f"cannot read {closed}: Permission denied" in refusal(from_text(tmp_path))


def test_file_names_that_are_not_utf8_can_be_shown(tmp_path: Path) -> None:
    """A document's name can be printed on any terminal, whatever the file is called."""
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).write_text("text")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    [document] = read_documents(from_text(tmp_path))
    assert document.name.encode() == os.fsencode(tmp_path) + b"/caf\\xe9"


def test_standard_library_is_the_default_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources only: no installed packages, caches, empty, binary or foreign files; none is cut."""
    kept = {"os.py": b"import sys\n" * 5000, "json/a.py": "é".encode()}
    left_out = {
        "site-packages/x.py": b"x",
        "dist-packages/x.py": b"x",
        "json/__pycache__/x.py": b"x",
        "notes.txt": b"x",
        "empty.py": b"",
        "zero.py": b"\0",
        "latin1.py": b"\xe9",
    }
    for name, text in (kept | left_out).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text)
    monkeypatch.setattr(data.text.sysconfig, "get_path", lambda _: str(tmp_path))
    documents = read_documents(DataConfig())
    assert [(document.name, document.text) for document in documents] == [
        (name, kept[name]) for name in ("json/a.py", "os.py")
    ]
    monkeypatch.setattr(data.text.sysconfig, "get_path", lambda _: str(tmp_path / "none"))
    assert "no standard library sources" in refusal(DataConfig())


def test_this_python_has_a_standard_library() -> None:
    """The default text is there: megabytes of source, read without loading jax."""
    code = (
        "import sys; from data.sources import read_documents; from int_lm.config import DataConfig;"
        "d = read_documents(DataConfig()); print(len(d), sum(len(x.text) for x in d));"
        "assert 'jax' not in sys.modules"
    )
    count, size = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert int(count) > 400 and int(size) > 5_000_000


@pytest.mark.parametrize("chunk", [4, 5, 7, 1000])
def test_check_finds_the_first_fault_across_chunks(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Characters that lie across two chunks are sound, and a fault keeps its offset."""
    monkeypatch.setattr(data.text, "CHECKED_AT_ONCE", chunk)
    sound = "aé€😀\n".encode() * 9
    assert find_non_text(io.BytesIO(sound)) is None
    for length in range(len(sound)):
        text = sound[:length] + b"\xff" + sound
        try:
            text.decode()
        except UnicodeDecodeError as error:
            found = find_non_text(io.BytesIO(text))
            assert found is not None and found[0] == error.start


# Cutting


@given(TEXT, st.integers(1, 40))
def test_cut_pieces_are_the_text(text: str, size: int) -> None:
    """Pieces join to the text, are UTF-8 and no longer than asked; short lines stay whole."""
    document = Document("name", text.encode())
    pieces = cut(document, size)
    assert b"".join(piece.text for piece in pieces) == document.text
    assert all(piece.text.decode() for piece in pieces)
    assert all(len(piece.text) <= size + 3 for piece in pieces)
    if len(document.text) <= size:
        assert pieces == [document]
    else:
        assert [piece.name for piece in pieces] == [f"name#{i}" for i in range(len(pieces))]


def test_cut_prefers_line_ends() -> None:
    """Whole lines fill a document up; only a line longer than a document is itself cut."""
    lines = Document("x", b"aaaa\nbbb\ncccccccccccccc\ndd\nee\n")
    assert [piece.text for piece in cut(lines, 10)] == [
        b"aaaa\nbbb\n",
        b"cccccccccc",
        b"cccc\ndd\n",
        b"ee\n",
    ]
    assert cut(lines, 0) == [lines]


def test_long_files_are_cut_when_read(tmp_path: Path) -> None:
    """A file above data.document_bytes becomes documents path#0, path#1, ...; others do not."""
    (tmp_path / "long").write_bytes(b"0123456\n" * 4)
    (tmp_path / "short").write_bytes(b"0123456\n" * 2)
    documents = read_documents(from_text(tmp_path, document_bytes=16))
    assert [Path(document.name).name for document in documents] == ["long#0", "long#1", "short"]


# Split


@given(DOCUMENTS, st.floats(0.001, 0.999))
def test_split_never_overlaps(documents: list[Document], holdout: float) -> None:
    """Every document lands on one side, both sides have some, and no text is on both."""
    if len({document.text for document in documents}) < 2:
        with pytest.raises(UserError, match="needs at least 2 different documents.*makes 1;"):
            split(documents, holdout)
        return
    sides = split(documents, holdout)
    assert sides.train and sides.heldout
    assert not {d.text for d in sides.train} & {d.text for d in sides.heldout}
    assert Counter(sides.train + sides.heldout) == Counter(documents)


def test_split_without_documents_is_refused() -> None:
    """No text at all is told in the same words."""
    with pytest.raises(UserError, match="makes 0;"):
        split([], 0.1)


def test_split_depends_on_a_text_alone() -> None:
    """A text's side survives another order, another name and other documents beside it."""
    documents = [Document(f"n{i}", b"text %d" % i) for i in range(2000)]
    sides = split(documents, 0.1)
    assert 150 < len(sides.heldout) < 250
    assert [int(d.name[1:]) for d in sides.heldout] == sorted(
        int(d.name[1:]) for d in sides.heldout
    )
    renamed = [Document("other", document.text) for document in reversed(documents[:500])]
    expected = {d.text for d in sides.heldout} & {d.text for d in renamed}
    assert {d.text for d in split(renamed, 0.1).heldout} == expected
    assert set(sides.heldout) < set(split(documents, 0.2).heldout)


def test_split_is_golden() -> None:
    """The held-out documents of earlier runs stay held out.

    If this fails, numbers of earlier runs cannot be compared any more: restore the hash.
    """
    documents = [Document(str(i), str(i).encode()) for i in range(60)]
    assert [d.name for d in split(documents, 0.1).heldout] == ["18", "29", "47", "55"]


def test_split_leaves_neither_side_empty() -> None:
    """Where the share would take none or all, the nearest text to the limit changes sides."""
    two = [Document(str(i), str(i).encode()) for i in range(2)]
    low, high = (split(two, holdout) for holdout in (1e-9, 1 - 1e-9))
    assert low == high
    assert len(low.train) == len(low.heldout) == 1
    assert split([*two, two[0], two[1]], 1e-9) == split([*two, two[0], two[1]], 1 - 1e-9)
