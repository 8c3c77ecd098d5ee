#!/usr/bin/env bash
# pyarrow: reading a Parquet file batch by batch holds all that was read, and closing the file does not give it back.
#
# One would guess: ParquetFile.iter_batches needs a row group and a batch at a time, so that memory does not grow with
#   the file; and what a reader holds is free once the file is closed.
# What happens: with pre_buffer, which pyarrow 26 sets unless told otherwise, the raw bytes of every row group that was
#   read stay in memory: of a file of 200 row groups of 1 MB, 200 MB at the end. ParquetFile.close() leaves them there;
#   they are free when the object is. With pre_buffer=False it is one row group throughout. The issue on this names
#   iter_batches as the way around, which it is no longer.
# Why it matters here: memory must not grow with the text (docs/data.md), and a file may be larger than memory.
#   data/parquet_file.py asks for pre_buffer=False and a buffer of its own size for this reason.
# Source: https://github.com/apache/arrow/issues/39808 and pull request 49855 there (read ranges that are cached are
#   never evicted); documentation, https://arrow.apache.org/docs/python/generated/pyarrow.parquet.ParquetFile.html,
#   which says of pre_buffer what it gains and not what it holds.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import random
import sys

import pyarrow as pa
import pyarrow.parquet as pq

print(f"pyarrow {pa.__version__}")
MB = 1 << 20
bits = random.Random(0)


def write(groups):
    """A file of so many row groups of 1 MB that cannot be compressed."""
    schema = pa.schema([("x", pa.binary())])
    with pq.ParquetWriter("x.parquet", schema, compression="none", use_dictionary=False) as file:
        for _ in range(groups):
            file.write_table(pa.table({"x": [bits.randbytes(1024) for _ in range(1024)]}, schema))


def read(**options):
    """MB of pyarrow's memory: at the most while reading, after `close`, after the object is gone."""
    before, most = pa.total_allocated_bytes(), 0
    file = pq.ParquetFile("x.parquet", **options)
    for batch in file.iter_batches(batch_size=64):
        del batch
        most = max(most, pa.total_allocated_bytes() - before)
    file.close()
    closed = pa.total_allocated_bytes() - before
    del file
    return most // MB, closed // MB, (pa.total_allocated_bytes() - before) // MB


for groups in (50, 200):
    write(groups)
    for name, options, holds in (
        ("nothing said", {}, True),
        ("pre_buffer=True", {"pre_buffer": True}, True),
        ("pre_buffer=False", {"pre_buffer": False}, False),
    ):
        most, closed, gone = read(**options)
        print(f"{groups} row groups of 1 MB, {name}: {most} MB at most, {closed} MB closed, {gone} MB gone")
        least, largest = (groups, groups + 10) if holds else (0, 10)
        if not (least <= most <= largest and (closed >= groups) == holds and gone == 0):
            sys.exit(f"The behaviour is another one now: with {name}, memory is not held as it was.")
PYTHON
