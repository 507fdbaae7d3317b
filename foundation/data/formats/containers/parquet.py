"""Parquet files, by pyarrow: columns of numbers, of lists of numbers, and of lists of one size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from foundation.data.formats.containers.damage import damage_as_data_error
from foundation.data.formats.containers.keyed import Held, KeyedSource, native, shape_in_words
from foundation.data.formats.containers.sink import Sink
from foundation.data.formats.containers.source import Array, Ragged
from foundation.data.ragged import to_offsets
from foundation.errors import DataError

LARGEST_BATCH = 65536
"""Rows that are unpacked at once."""


@dataclass
class _Stream:
    """Rows of some columns, one after the other from `position` on."""

    names: list[str]
    position: int
    batches: Iterator[Any]
    rest: Any = None
    """What is left of the last batch."""


class ParquetSource(KeyedSource):
    """A Parquet file. Ranges that follow each other read every page once, without holding whole row groups."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with damage_as_data_error(path):
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            self._schema = self._file.schema_arrow
            groups = [self._file.metadata.row_group(i) for i in range(self._file.metadata.num_row_groups)]
            self._starts = to_offsets(np.asarray([group.num_rows for group in groups], np.int64))
            self._values: dict[str, int] = {}
            for group in groups:
                for i in range(group.num_columns):
                    name = group.column(i).path_in_schema.split(".")[0]
                    self._values[name] = self._values.get(name, 0) + group.column(i).num_values
            if self._starts[-1] != self._file.metadata.num_rows:
                raise DataError(f"{path}: the row groups do not add up to the number of rows: the file is damaged")
        self._stream: _Stream | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._schema.names))

    def close(self) -> None:
        self._stream = None
        self._file.close()

    def _look(self, name: str) -> Held:
        rows = int(self._starts[-1])
        kind = self._schema.field(name).type
        inner: tuple[int, ...] = ()
        ragged = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        content = kind.value_type if ragged else kind
        while pa.types.is_fixed_size_list(content) and not ragged:
            inner, content = (*inner, content.list_size), content.value_type
        if not (pa.types.is_integer(content) or pa.types.is_floating(content) or pa.types.is_boolean(content)):
            return Held((rows,), 0.0, f"{kind} [{rows}]", unreadable="only numbers and lists of numbers are read")
        dtype = np.dtype(content.to_pandas_dtype())
        size = self._values.get(name, 0) / max(1, rows) * dtype.itemsize + (8 if ragged else 0)
        words = shape_in_words(dtype, (rows, "*") if ragged else (rows, *inner))
        return Held((rows, *inner), size, words, ragged)

    def _read(self, names: list[str], start: int, stop: int) -> dict[str, Array]:
        with damage_as_data_error(self.path, ", ".join(names)):
            table = self._rows(names, start, stop)
        arrays = {}
        for name in names:
            with damage_as_data_error(self.path, name):
                arrays[name] = self._array(name, table.column(name))
        return arrays

    def _rows(self, names: list[str], start: int, stop: int) -> Any:
        stream = self._stream
        if stream is None or stream.names != names or stream.position != start:
            stream = self._opened_at(names, start, stop - start)
        # A stream that fails is not gone on with.
        self._stream = None
        pieces = []
        while stream.position < stop:
            batch = stream.rest if stream.rest is not None else next(stream.batches, None)
            if batch is None:
                raise DataError(f"{self.path}: ends at row {stream.position}: the file is damaged")
            taken = batch.slice(0, stop - stream.position)
            stream.rest = batch.slice(taken.num_rows) if taken.num_rows < batch.num_rows else None
            stream.position += taken.num_rows
            if taken.num_rows:
                pieces.append(taken)
        self._stream = stream
        schema = pa.schema([self._schema.field(name) for name in names])
        if not pieces:
            return schema.empty_table()
        return pa.Table.from_batches([piece.select(names) for piece in pieces])

    def _opened_at(self, names: list[str], start: int, rows: int) -> _Stream:
        """A stream that begins with row `start`, after the rows before it in its row group."""
        first = max(0, int(np.searchsorted(self._starts, start, side="right")) - 1)
        groups = list(range(first, len(self._starts) - 1))
        size = max(1, min(rows, LARGEST_BATCH))
        batches = self._file.iter_batches(size, row_groups=groups, columns=names, use_threads=False)
        stream = _Stream(names, int(self._starts[min(first, len(groups) + first)]), batches)
        while stream.position < start:
            batch = next(stream.batches, None)
            if batch is None:
                raise DataError(f"{self.path}: ends at row {stream.position}: the file is damaged")
            skipped = min(batch.num_rows, start - stream.position)
            stream.position += skipped
            stream.rest = batch.slice(skipped) if skipped < batch.num_rows else None
        return stream

    def _array(self, name: str, column: Any) -> Array:
        column = column.combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        if column.null_count:
            raise DataError(f"{self.path}: '{name}' has {column.null_count} missing entries (null)")
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            offsets = column.offsets.to_numpy()
            values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
            return Ragged(self._numbers(name, values), np.diff(offsets).astype(np.int64))
        shape = [len(column)]
        while pa.types.is_fixed_size_list(column.type):
            shape.append(column.type.list_size)
            column = column.flatten()
        return self._numbers(name, column).reshape(shape)

    def _numbers(self, name: str, column: Any) -> NDArray:
        if column.null_count:
            raise DataError(f"{self.path}: '{name}' has {column.null_count} missing values (null)")
        return native(column.to_numpy(zero_copy_only=False))


class ParquetSink(Sink):
    """Writes columns and list columns as the JetClass-II files have them (no nulls), with a CRC of every page."""

    def __init__(self, path: Path, attributes: Mapping[str, str] | None = None) -> None:
        self._path, self._attributes = path, dict(attributes or {})
        self._writer: Any = None

    def append(self, arrays: Mapping[str, Array]) -> None:
        columns = [_arrow(array) for array in arrays.values()]
        if self._writer is None:
            fields = [pa.field(key, c.type, nullable=False) for key, c in zip(arrays, columns, strict=True)]
            self._schema = pa.schema(fields, metadata=self._attributes or None)
            self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd", write_page_checksum=True)
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def finish(self) -> None:
        pass

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _arrow(array: Array) -> Any:
    if isinstance(array, Ragged):
        values = pa.array(np.ascontiguousarray(array.values))
        kind = pa.list_(pa.field("item", values.type, nullable=False))
        offsets = pa.array(to_offsets(array.counts).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, values, type=kind)
    column = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, type=pa.list_(pa.field("item", column.type, False), size))
    return column
