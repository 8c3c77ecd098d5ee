"""Names of files that several rooms read, and of those that earlier versions gave them."""

from pathlib import Path

TOKENIZER = "identity.json"  # of the tokenizer in a directory
TOKENIZER_BEFORE = "tokenizer.json"  # the name of another library's format, which is not ours


def tokenizer_file(directory: str | Path) -> Path:
    """The file that identifies the tokenizer in `directory`: of that name, or of the old one."""
    path, before = Path(directory) / TOKENIZER, Path(directory) / TOKENIZER_BEFORE
    return before if before.exists() and not path.exists() else path
