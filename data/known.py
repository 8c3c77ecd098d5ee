"""Find the token shards of a text by its digest. The text itself may have moved.

Beside shards are hashes of their documents: they tell which text was trained on.
"""

import contextlib
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import arrays, manifest, split
from data.corpus import Corpus
from data.documents import Document, Notice
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
    for directories in _of_digest(data, tokenizer, sha256, folders):
        try:
            return Corpus(
                tokenizer,
                [
                    manifest.open_prepared(directory, source, tokenizer)
                    for source, directory in zip(sources, directories, strict=True)
                ],
            )
        except UserError as error:
            say(str(error))
    return None


def count_trained(
    documents: Sequence[Document],
    data: DataConfig,
    tokenizer: Tokenizer,
    sha256: str | None,
    folders: Sequence[Path],
    *,
    say: Notice,
) -> dict[str, int] | None:
    """How much of some text is in the training text of a model, document by document.

    Documents are known by a hash of their bytes. If the source is read in stages, all stages that
    were prepared are training text.

    Args:
      documents: the text.
      data: as for `find`.
      tokenizer: as for `find`.
      sha256: digest of the training text; None if it is not known.
      folders: as for `find`.
      say: receives one sentence about files of hashes that are damaged.

    Returns:
      {"documents", "bytes"} of those in the training text; None if no token shards with hashes of
      all their documents are there.
    """
    hashes = np.array([split.hash_of(document.text) for document in documents], np.uint64)
    for directories in _of_digest(data, tokenizer, sha256, folders) if sha256 else ():
        found = np.zeros(len(documents), bool)
        try:
            for directory in directories:
                for known in _hashes_in(directory, staged=bool(data.window_bytes)):
                    places = np.minimum(np.searchsorted(known, hashes), max(0, len(known) - 1))
                    found |= known[places] == hashes if len(known) else False
        except UserError as error:
            say(str(error))
            continue
        except FileNotFoundError:  # made by an earlier version
            continue
        sizes = np.array([len(document.text) for document in documents], np.int64)
        return {"documents": int(found.sum()), "bytes": int(sizes[found].sum())}
    return None


def _hashes_in(directory: Path, *, staged: bool) -> Iterator[np.ndarray]:
    """The hashes of the documents of every shard, uint64, sorted.

    Raises:
      FileNotFoundError: a shard has none.
      UserError: a manifest or a file of hashes is damaged.
    """
    for stage in sorted(directory.parent.glob("stage-*")) if staged else [directory]:
        if not (stage / manifest.FILE).exists():
            continue
        for shard in manifest.read(stage)["shards"]:
            path = stage / f"{shard['name']}{manifest.DOCUMENTS}"
            if "documents_sha256" not in shard:
                raise FileNotFoundError(path)
            if not path.is_file() or digest.of_file(path) != shard["documents_sha256"]:
                raise UserError(f"{path} is damaged, so nobody knows which text was trained on")
            yield arrays.mapped(path)


def _of_digest(
    data: DataConfig, tokenizer: Tokenizer, sha256: str, folders: Sequence[Path]
) -> Iterator[list[Path]]:
    """The directories of the sources of every prepared text with a digest, without their checks."""
    sources = config.sources_of(data)
    for folder in dict.fromkeys(folders):
        of_sources = [
            list(_directories(folder, source.name, bool(data.window_bytes), tokenizer))
            for source in sources
        ]
        combinations = itertools.product(*of_sources)
        for chosen in itertools.islice(combinations, COMBINATIONS_AT_MOST):
            if digest.of_json([own for _, own in chosen]) == sha256:
                yield [directory for directory, _ in chosen]


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
