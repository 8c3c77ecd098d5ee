"""Names of files that several rooms read, and the names that older versions gave them."""

from pathlib import Path

METRICS = "metrics.jsonl"  # of a run: one object per logged step
TOKENIZER = "identity.json"  # identifies the tokenizer in a directory
TOKENIZER_BEFORE = "tokenizer.json"  # its older name, which is also that of another format


def tokenizer_file(directory: str | Path) -> Path:
    """The file that identifies the tokenizer in `directory`, under its name or its older name."""
    path, before = Path(directory) / TOKENIZER, Path(directory) / TOKENIZER_BEFORE
    return before if before.exists() and not path.exists() else path
