#!/usr/bin/env bash
# datasets: texts of JSON lines that are dates come out as other texts, if a block of the file holds nothing else.
#
# One would guess: a field that is declared as text, Features({"text": Value("string")}), comes out as it stands in the
#   file; and if types are guessed, one guess holds for the whole file.
# What happens: JSON lines are read in blocks of 10 MB (`chunksize`), and pyarrow guesses the types of each block anew,
#   without being told what is declared. A block whose texts all look like dates becomes timestamps, in UTC, and is cast
#   back to the declared text, or to that of the first block: "2024-01-05T10:00:00+02:00" comes out as
#   "2024-01-05 08:00:00". The same records in another order come out whole. Nothing is said.
# Why it matters here: a document's bytes decide whether it is held out, and a run is known by the digest of its text.
#   So data/json_file.py reads every record alone, of local files and of those of the hub (data/hub_files.py). Where
#   `datasets` must unpack JSON (archives, `field`), data/hub.py says that texts may change.
# Source: huggingface/datasets, src/datasets/packaged_modules/json/json.py: `paj.read_json` has read options alone, no
#   schema, for every block; documentation of the guesses, https://arrow.apache.org/docs/python/json.html (strings of
#   the kind "YYYY-MM-DD hh:mm:ss" convert to timestamp[s]); a file that is refused for a guess of this kind:
#   https://github.com/huggingface/course/issues/692.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1

cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import collections
import json
import sys

import datasets
import pyarrow

print(f"datasets {datasets.__version__}, pyarrow {pyarrow.__version__}")
DATE, PLAIN = "2024-01-05T10:00:00+02:00", "x" * 1000
OTHER = "2024-01-05 08:00:00"
RECORDS = -(-(10 << 20) // len(json.dumps({"text": PLAIN}) + "\n"))  # of plain text, one whole block


def read(texts, features):
    """How often each text comes out of a file of JSON lines with these texts."""
    with open("records.jsonl", "w", encoding="ascii") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    rows = datasets.load_dataset(
        "json", data_files="records.jsonl", split="train", streaming=True, features=features
    )
    found = collections.Counter(row["text"] for row in rows)
    return {"plain" if text == PLAIN else text: number for text, number in found.items()}


text = datasets.Features({"text": datasets.Value("string")})
apart = [PLAIN] * RECORDS + [DATE] * 1000
mixed = [PLAIN] * (RECORDS - 500) + [DATE] * 1000 + [PLAIN] * 500
for name, texts, features, date in (
    ("dates in a block of their own, declared as text", apart, text, OTHER),
    ("dates in a block of their own, nothing declared", apart, None, OTHER),
    ("the same records, dates before the last 500 texts", mixed, text, DATE),
):
    found = read(texts, features)
    print(f"{name}: {found}")
    if found != {"plain": RECORDS, date: 1000}:
        sys.exit(f"The behaviour is another one now: of {name}, {date} was expected 1000 times.")
PYTHON
