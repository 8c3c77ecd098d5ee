"""Preparing and reading text: MB/s and memory of preparation, and what a batch costs a step.

    python benchmarks/preparation.py [--bytes 1000000000] [--json]

It writes JSON lines with --bytes bytes of text from the standard library's sources. It prepares
them as bytes and with 8192 SentencePiece pieces, each in another process, and prints the peak
memory of that process. Then it measures the time to find a window in an order of 10^9 windows, and
the time of the batches of configs/quickstart.yaml and of its steps, in turns.
"""

import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

VOCABULARY = 8192
TOKENIZER_BYTES = 20_000_000


def write_records(path: Path, size: int) -> int:
    """Write about `size` bytes of text as records of many lengths; returns the exact number."""
    from data.sources import read_documents
    from int_lm.config import DataConfig

    text = b"".join(document.text for document in read_documents(DataConfig())).decode()
    generator, written = random.Random(0), 0
    with path.open("w") as file:
        while written < size:
            length = 1 + int(generator.lognormvariate(8, 1))
            start = generator.randrange(len(text))
            record = text[start : start + length]
            file.write(json.dumps({"text": record}) + "\n")
            written += len(record.encode())
    return written


def say(text: str) -> None:
    """Print to stderr: only the figures go to stdout."""
    print(text, file=sys.stderr)


def reading() -> dict[str, float]:
    """Medians: the time of a window in 10^9, of a batch, and the share of a batch in a step."""
    import tokenization
    from data.open import open_corpus
    from data.order import Permutation, key
    from int_lm.method import evolve

    order, places = Permutation(10**9, key(0, "text", 0)), []
    for index in range(2000):
        start = time.perf_counter()
        order[1_000_000 + 977 * index]
        places.append(time.perf_counter() - start)
    settings = common.shipped("quickstart")
    tokenizer = tokenization.load("bytes")
    laid = open_corpus(settings.data, tokenizer, say=say).streams(settings, [(0, [1.0])])
    recipe = common.recipe_of(settings, tokenizer.vocab_size)
    state, step = evolve.initial(recipe), evolve.compiled_step(recipe)
    state, _ = step(state, laid.at(0), 0)
    batches, steps = [], []
    for number in range(1, 60):
        start = time.perf_counter()
        tokens_ST = laid.at(number)
        read = time.perf_counter()
        state, measured = step(state, tokens_ST, number)
        measured.scores_P.block_until_ready()
        batches.append(read - start)
        steps.append(time.perf_counter() - start)
    return {
        "place_microseconds": statistics.median(places) * 1e6,
        "batch_milliseconds": statistics.median(batches) * 1e3,
        "batch_over_step": statistics.median(batches) / statistics.median(steps),
    }


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--bytes", type=int, default=1_000_000_000, help="of text")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        size = write_records(root / "text.jsonl", arguments.bytes)
        data = ["--data.source", "json", "--data.path", str(root / "text.jsonl")]
        data += ["--data.shards", str(root / "shards")]
        pieces = str(root / "pieces")
        for name in ("bytes", pieces):
            if name == pieces:
                flags = ["--vocab_size", str(VOCABULARY), "--out", pieces]
                flags += ["--sample_bytes", str(TOKENIZER_BYTES)]
                common.run(["-m", "tokenization.train", *data, *flags], sys.stderr)
            command = ["-m", "data.prepare", *data, "--data.tokenizer", name]
            finished = common.run(command, sys.stderr)
            rows.append(
                {
                    "tokenizer": "bytes" if name == "bytes" else f"sentencepiece {VOCABULARY}",
                    "bytes": size,
                    "mb_per_s": size / finished.seconds / 1e6,
                    "peak_mb": finished.peak / 1e6,
                }
            )
    found = reading()
    if arguments.json:
        print(json.dumps({"machine": common.machine(), "rows": rows, "reading": found}))
        return
    for row in rows:
        print(
            f"{row['tokenizer']:<20} {row['bytes']:,} bytes  {row['mb_per_s']:.1f} MB/s  "
            f"peak {row['peak_mb']:.0f} MB"
        )
    print(
        f"place in 10^9 windows {found['place_microseconds']:.1f} us, batch "
        f"{found['batch_milliseconds']:.2f} ms, {found['batch_over_step']:.2%} of a step"
    )


if __name__ == "__main__":
    main()
