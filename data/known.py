"""Find the token shards of a text by its digest. The text itself may have moved."""

import contextlib
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data import manifest
from data.corpus import Corpus
from data.documents import Notice
from int_lm import config
from int_lm.config import DataConfig
from int_lm.errors import UserError
from int_lm.files import digest
from tokenization.interface import Tokenizer, identity

COMBINATIONS_AT_MOST = 4096  # of directories of the sources of a mixture


def find(
    data: DataConfig, tokenizer: Tokenizer, sha256: str, folders: Sequence[Path], *, say: Notice
) -> Corpus | None:
    """The corpus whose digest is `sha256`, from token shards alone; None if there are none.

    If the source is read in stages, the corpus has only the first stage. This is enough to evaluate
    the held-out text, but not to train.

    Args:
      data: the names of its sources are used; the text itself is not read.
      tokenizer: made the tokens.
      sha256: digest, as `Corpus.sha256` computes it.
      folders: directories such as `data.shards`, searched in this order.
      say: receives one sentence about damaged shards that are passed over.
    """
    sources = config.sources_of(data)
    for folder in dict.fromkeys(folders):
        of_sources = [
            list(_directories(folder, source.name, bool(data.window_bytes), tokenizer))
            for source in sources
        ]
        combinations = itertools.product(*of_sources)
        for chosen in itertools.islice(combinations, COMBINATIONS_AT_MOST):
            if digest.of_json([own for _, own in chosen]) != sha256:
                continue
            try:
                return Corpus(
                    tokenizer,
                    [
                        manifest.open_prepared(directory, source, tokenizer)
                        for source, (directory, _) in zip(sources, chosen, strict=True)
                    ],
                )
            except UserError as error:
                say(str(error))
    return None


def _directories(
    folder: Path, name: str, in_stages: bool, tokenizer: Tokenizer
) -> Iterator[tuple[Path, str]]:
    """(directory, digest of its shards) of every prepared source called `name` in a folder."""
    own = identity(tokenizer)
    for directory in sorted(folder.glob(f"{name}-*/stage-00000" if in_stages else f"{name}-*")):
        found: dict[str, Any] = {}
        with contextlib.suppress(UserError):
            if (directory / manifest.FILE).is_file():
                found = manifest.read(directory)
        if found and found.get("tokenizer") == own:
            yield directory, digest.of_json([shard["sha256"] for shard in found["shards"]])


def missing(data: DataConfig) -> str | None:
    """The first path of `data` that does not exist; None if all paths exist."""
    for source in config.sources_of(data):
        if source.source in ("text", "json", "parquet"):
            for path in source.path:
                if not os.path.exists(path) and not glob.glob(path, recursive=True):
                    return path
    return None
