"""The rows of a Parquet file: only the columns asked for, one row group at a time."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from data.compressed import Opener
from data.fields import Problem, Values, is_utf8, no_field, not_utf8, paths_of, unreadable
from int_lm.errors import UserError

ROWS = 64  # decoded at once
BUFFER = 1 << 18  # bytes of a column read at once


class ParquetFile:
    """A file of rows, read from its beginning or from a position in it.

    A position is [number of the row], counted from 0.
    """

    def __init__(
        self,
        path: str,
        shown: str,
        names: Sequence[str],
        position: Sequence[int] | None,
        opener: Opener | None = None,
    ) -> None:
        """Name a file; nothing is read yet. The arguments are those of `JsonFile`."""
        self._path, self.shown, self._names, self._opener = path, shown, names, opener
        (self._row,) = position or (0,)

    def __iter__(self) -> Iterator[Values | Problem]:
        """The values of every row: UTF-8 bytes, or None for null.

        Raises:
          UserError: the file is not Parquet or is damaged, or the column does not hold text.
        """
        import pyarrow
        import pyarrow.parquet

        try:
            # No read-ahead: data that is read ahead stays in memory until the file is closed.
            with (
                self._opener(self._path) if self._opener else nullcontext(self._path) as stored,
                pyarrow.parquet.ParquetFile(stored, pre_buffer=False, buffer_size=BUFFER) as file,
            ):
                yield from self._rows(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise unreadable(self.shown, "parquet", f"row {self._row}", error) from error

    def where(self) -> str:
        """The place of the row given last."""
        return f"{self.shown}, row {self._row}"

    def position(self) -> list[int]:
        """The position after that row."""
        return [self._row]

    def _rows(self, file: Any) -> Iterator[Values | Problem]:
        schema = file.schema_arrow
        paths = [_path(schema, name, self.shown) for name in self._names]
        groups, before = [], 0  # row groups to read, and rows before them
        for number in range(file.metadata.num_row_groups):
            end = before + file.metadata.row_group(number).num_rows
            if groups or end > self._row:
                groups.append(number)
            else:
                before = end
        if not groups:
            return
        skipped = self._row - before
        for batch in file.iter_batches(
            batch_size=ROWS,
            row_groups=groups,
            columns=[".".join(path) for path in paths],
            use_threads=False,
        ):
            columns = [_values(batch, path, skipped) for path in paths]
            skipped = max(0, skipped - batch.num_rows)
            for values in zip(*columns, strict=True):
                self._row += 1
                yield next((value for value in values if isinstance(value, Problem)), values)


def _path(schema: Any, name: str, shown: str) -> tuple[str, ...]:
    """The path of the field `name`: (column,), or (column, field, ...) in a struct.

    Raises:
      UserError: there is no such field, or it does not hold text.
    """
    import pyarrow

    for path in paths_of(name):
        kind: Any = pyarrow.struct(list(schema))
        for key in path:
            index = kind.get_field_index(key) if pyarrow.types.is_struct(kind) else -1
            if index < 0:
                break
            kind = kind.field(index).type
        else:
            if pyarrow.types.is_dictionary(kind):
                kind = kind.value_type
            if not any(
                is_text(kind)
                for is_text in (
                    pyarrow.types.is_string,
                    pyarrow.types.is_large_string,
                    pyarrow.types.is_string_view,
                )
            ):
                raise UserError(
                    f"field {name!r} of {shown} holds {kind}, not text; name another with "
                    "--data.field"
                )
            return path
    raise no_field(shown, name, schema.names)


def _values(batch: Any, path: tuple[str, ...], skipped: int) -> list[bytes | Problem | None]:
    """A column as UTF-8 bytes, without its first `skipped` rows."""
    import pyarrow

    array = batch.column(path[0])
    if len(path) > 1:
        array = inner(array, path[1:])
    array = array.slice(skipped)
    if pyarrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    name = ".".join(path)
    values = array.cast(pyarrow.large_binary()).to_pylist()
    try:
        array.validate(full=True)
        return values
    except pyarrow.ArrowInvalid:
        return [
            value if value is None or is_utf8(value) else Problem(not_utf8(name))
            for value in values
        ]


def inner(array: Any, path: Sequence[str]) -> Any:
    """The field at `path` of an array of structs; null where one of the structs is."""
    import pyarrow.compute

    return pyarrow.compute.call_function(
        "struct_field", [array], pyarrow.compute.StructFieldOptions(list(path))
    )
