"""Runtimes of exports: tokens per second of processor time that one stream is generated with.

    python benchmarks/runtimes.py [--repeats 5] [--tokens 100000] [--compiler gcc] [--json]
        [--llama2 runq.c] [--rwkv_cpp DIR]

Models with initial weights, and context tables of which 6.5 % of the entries are not 0, as at the
end of the quickstart. The C runtime is compiled with -O3 and writes --tokens tokens (fewer for
large models), by the widest instructions of the processor and row by row; the time of a run that
writes one token is taken off. NumPy writes fewer. All take turns, and medians are printed. `memory`
is what the bandwidth allows: a program that only reads as many bytes as there are weights, but for
the embedding, again and again. Where they fit a cache it is the cache's bandwidth.

Others of about as many weights, random ones of 8 bits, take turns (benchmarks/peers.py): with
--llama2, the path of runq.c of github.com/karpathy/llama2.c, a transformer with contexts of 256
tokens; with --rwkv_cpp, a clone of github.com/RWKV/rwkv.cpp with its submodule ggml, an RWKV-4 in
its format Q8_0, which CMake builds.
"""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import common, peers
from int_lm import export, runtime
from int_lm.config import ModelConfig
from int_lm.method import recipe
from int_lm.model import params
from int_lm.model.params import Parameters
from int_lm.run import Run
from tokenization import ByteTokenizer
from tokenization.interface import identity

SHAPES = {
    "quickstart": common.shipped("quickstart").model,
    "D 96, L 2": ModelConfig(width=96, layers=2),
    "D 512, L 6": ModelConfig(width=512, layers=6),
    "D 1024, L 8": ModelConfig(width=1024, layers=8),  # larger than caches
}
LEAST_TOKENS = 10_000
STREAM_BYTES = 10_000_000_000
STREAM = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* reads some bytes a number of times, by four streams: one alone is slower */
int main(int count, char **words) {
    const size_t quarter = (size_t)atoll(words[1]) / 32, turns = (size_t)atoll(words[2]);
    uint64_t *first = malloc(quarter * 32), a = 0, b = 0, c = 0, d = 0;
    const uint64_t *second = first + quarter, *third = second + quarter, *last = third + quarter;
    memset(first, count, quarter * 32);
    for (size_t turn = 0; turn < turns; turn++) {
        for (size_t i = 0; i < quarter; i++) {
            a += first[i] ^ turn;
            b += second[i] ^ turn;
            c += third[i] ^ turn;
            d += last[i] ^ turn;
        }
    }
    printf("%llu", (unsigned long long)(a ^ b ^ c ^ d));
    return 0;
}
"""


def exported(model: ModelConfig, directory: Path) -> tuple[Path, int]:
    """The export of a model with initial weights; the bytes of it that every token reads."""
    settings = dataclasses.replace(common.shipped("quickstart"), model=model)
    of_run = recipe.of(settings, common.VOCAB_SIZE)
    weights = params.initialise(of_run.model.specs, 0)
    generator = np.random.default_rng(0)

    def table(shape: tuple[int, ...]) -> np.ndarray:
        values = generator.integers(-24, 25, shape, np.int8)
        values *= generator.integers(0, 256, shape, np.uint8) < 28
        return values * (generator.random((shape[0], 1)) < 0.586).astype(np.int8)

    tables = {name: table(value.shape) for name, value in weights.tables.items()}
    weights = Parameters(weights.network, tables)
    ByteTokenizer().save(directory / "tokenizer")
    run = Run(settings, of_run, 0, weights, identity(ByteTokenizer()), "")
    read = sum(leaf.size for _, leaf in params.flatten(weights.network))
    read -= weights.network["embedding"].size
    out = directory / "export"
    return export.export_model(run, out, tokenizer_directory=directory / "tokenizer"), read


def seconds(*command: str | Path) -> float:
    """The processor time of a program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def of_c(program: Path, path: list[str], tokens: int) -> float:
    """Tokens per second of the C runtime."""
    words = [program, *path, "sample", "--no_stop", "--tokens"]
    return tokens / (seconds(*words, str(tokens + 1)) - seconds(*words, "1"))


def of_numpy(model: runtime.Model, tokens: int) -> float:
    """Tokens per second of the NumPy runtime."""
    start = time.process_time()
    for _ in runtime.generate(
        runtime.reader(model), b"", runtime.Sampler(), tokens=tokens, stop=False
    ):
        pass
    return tokens / (time.process_time() - start)


def of_others(words: list[str], tokens: int, runs: int) -> float:
    """Tokens per second of another program."""
    took = sum(seconds(*words, str(tokens)) - seconds(*words, "1") for _ in range(runs))
    return (tokens - 1) * runs / took


def bandwidth(program: Path, read: int) -> float:
    """Bytes per second that one core reads, of `read` bytes again and again."""
    turns = max(1, STREAM_BYTES // read)
    return (
        read * turns / (seconds(program, str(read), str(turns)) - seconds(program, str(read), "0"))
    )


def compiled(compiler: str, program: Path, source: Path, *flags: str) -> Path:
    """A C file as a program, with -O3."""
    subprocess.run([compiler, "-std=c99", "-O3", *flags, "-o", program, source], check=True)
    return program


def measured(
    model: ModelConfig, folder: Path, stream: Path, rwkv_cpp: Path | None, arguments: Any
) -> dict[str, float]:
    """Medians of tokens per second of every program, and bytes per second, for one shape."""
    directory, read = exported(model, folder)
    program = compiled(arguments.compiler, directory / "model", directory / "runtime.c")
    loaded = runtime.load(directory)
    tokens = max(500, min(arguments.tokens, arguments.tokens * 200_000 // read))
    turns: dict[str, Callable[[], float]] = {
        "c": lambda: of_c(program, [], tokens),
        "c_rows": lambda: of_c(program, ["--path", "rows"], max(100, tokens // 4)),
        "numpy": lambda: of_numpy(loaded, max(50, tokens // 100)),
        "bandwidth": lambda: bandwidth(stream, read),
    }
    shape = model.layers, model.width, read, folder
    if arguments.llama2:
        transformer = peers.llama2(arguments.llama2, *shape)
        runs = max(1, min(10, 10_000_000 // read))
        turns["llama2"] = lambda: of_others(transformer, peers.CONTEXT, runs)
    if rwkv_cpp:
        network = peers.rwkv_cpp(rwkv_cpp, *shape)
        turns["rwkv_cpp"] = lambda: of_others(network, max(300, tokens // 8), 1)
    found: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(arguments.repeats):
        for name, turn in turns.items():
            found[name].append(turn())
    return {"bytes_per_token": read, **{k: statistics.median(v) for k, v in found.items()}}


def main() -> None:
    parser = common.parser(__doc__, repeats=5)
    parser.add_argument("--tokens", type=int, default=100_000, help="that the C runtime writes")
    parser.add_argument("--compiler", default="gcc")
    parser.add_argument("--llama2", type=Path, metavar="FILE", help="its runq.c, to compare with")
    parser.add_argument("--rwkv_cpp", type=Path, metavar="DIR", help="its source, with ggml")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="only this; repeatable")
    arguments = parser.parse_args()
    if arguments.tokens < LEAST_TOKENS:  # the difference of two runs would be noise
        parser.error(f"--tokens {arguments.tokens}: at least {LEAST_TOKENS}; fewer take no time")
    rows = []
    with tempfile.TemporaryDirectory() as tools:
        stream = Path(tools) / "stream.c"
        stream.write_text(STREAM)
        stream = compiled(arguments.compiler, Path(tools) / "stream", stream, "-march=native")
        rwkv_cpp = arguments.rwkv_cpp and peers.build_rwkv_cpp(arguments.rwkv_cpp, Path(tools))
        for name in arguments.shape or SHAPES:
            with tempfile.TemporaryDirectory() as folder:
                row = measured(SHAPES[name], Path(folder), stream, rwkv_cpp, arguments)
            row["memory"] = row["bandwidth"] / row["bytes_per_token"]
            rows.append({"shape": name, **row})
            if not arguments.json:
                others = {"llama2": "llama2.c", "rwkv_cpp": "rwkv.cpp"}
                beside = "".join(f" {say} {row[k]:,.0f}," for k, say in others.items() if k in row)
                print(
                    f"{name}: C {row['c']:,.0f},{beside} row by row {row['c_rows']:,.0f}, "
                    f"NumPy {row['numpy']:,.0f} tokens/s; memory allows {row['memory']:,.0f} "
                    f"({row['bandwidth'] / 1e9:.1f} GB/s, {row['bytes_per_token']:,} bytes)",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps({"machine": common.machine(), "rows": rows}))


if __name__ == "__main__":
    main()
