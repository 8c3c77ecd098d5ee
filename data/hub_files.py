"""Data files of the Hugging Face hub: JSON and Parquet are read as files of this machine are.

`datasets` says which files a configuration and a split have. Its own readers guess the types of
what is in them, from other records than the one that is read.
"""

import codecs
import io
import re
from collections.abc import Sequence
from typing import Any, Literal

from data import formats
from data.patience import Patience
from data.records import RecordFiles
from data.tally import Tally
from int_lm.config import SourceConfig
from int_lm.errors import UserError

# Bytes asked for beyond those that are read; of Parquet, what follows may be another column.
BLOCK = {"json": 1 << 22, "parquet": 1 << 20}
_REPOSITORY = re.compile(r"hf://datasets/[^@]+@[^/]+/")


class HubFiles(RecordFiles):
    """The data files of one split, in the order of `datasets`."""

    def __init__(
        self,
        source: SourceConfig,
        kind: Literal["json", "parquet"],
        urls: Sequence[str],
        patience: Patience,
    ) -> None:
        """Name files; nothing is read yet.

        Args:
          source: names the dataset and the field.
          kind: the format of all files.
          urls: of the files, at the pinned revision.
          patience: with failures of the network.
        """
        self._patience = patience
        name = source.path[0]
        listed = [(f"{name}: {_REPOSITORY.sub('', url, count=1)}", url) for url in urls]
        super().__init__(source, kind, listed, Tally(), self._open)

    def size_of(self, path: str) -> int:
        """Bytes of a file, as stored."""
        system, path = _system_of(path)
        return self._patience(lambda: system.size(path))

    def _open(self, path: str) -> io.RawIOBase:
        system, path = _system_of(path)
        size = BLOCK[self._kind]
        file = self._patience(lambda: system.open(path, "rb", block_size=size))
        return _RemoteFile(file, self._patience)


class _RemoteFile(io.RawIOBase):
    """A file of the hub. What fails on the way is asked for again."""

    def __init__(self, file: Any, patience: Patience) -> None:
        self._file, self._patience = file, patience

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        data = self._patience(lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def kind_of(builder: Any, split: str) -> Literal["json", "parquet"] | None:
    """The format of the files of a split, if `RecordFiles` reads all of them as `builder` would.

    Args:
      builder: of `datasets`, for one configuration of a dataset.
      split: name of the split.
    """
    if is_json(builder):
        settings, kind = builder.config.field is None and _is_utf8(builder.config.encoding), "json"
    elif is_parquet(builder):
        config, kind = builder.config, "parquet"
        settings = (config.columns, config.filters, config.on_bad_files) == (None, None, "error")
    else:
        return None
    urls = files_of(builder, split)
    known = all(formats.kind_by_name(url) == kind and "::" not in url for url in urls)
    return kind if settings and known else None


def files_of(builder: Any, split: str) -> list[str]:
    """The addresses of the data files of a split.

    Raises:
      UserError: there is no such split.
    """
    found = {str(name): list(urls) for name, urls in (builder.config.data_files or {}).items()}
    if not found.get(split):
        raise UserError(
            f"the dataset has no split {split!r}, it has {', '.join(found) or 'none'}; name one "
            "with --data.split"
        )
    return found[split]


def is_json(builder: Any) -> bool:
    """Whether `datasets` reads JSON with this builder."""
    from datasets.packaged_modules.json.json import Json

    return isinstance(builder, Json)


def is_parquet(builder: Any) -> bool:
    """Whether `datasets` reads Parquet with this builder."""
    from datasets.packaged_modules.parquet.parquet import Parquet

    return isinstance(builder, Parquet)


def keep_texts_of_csv(builder: Any, field: str) -> None:
    """Make `datasets` read a field of CSV as it stands, and no other.

    It would guess types from some thousand rows at a time: 007 becomes 7, and NA becomes nothing.
    """
    import datasets
    from datasets.packaged_modules.csv.csv import Csv

    if isinstance(builder, Csv):
        settings: Any = builder.config
        settings.features = datasets.Features({field: datasets.Value("string")})
        builder.info.features = settings.features
        settings.usecols = [field]
        settings.na_filter = settings.keep_default_na = False


def _is_utf8(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding).name == "utf-8"
    except LookupError:
        return False


def _system_of(url: str) -> tuple[Any, str]:
    """(file system, path in it) of an address."""
    import fsspec.core

    return fsspec.core.url_to_fs(url)
