"""Runtimes of exports: tokens per second of processor time that one stream is generated with.

    python benchmarks/runtimes.py [--repeats 5] [--tokens 100000] [--compiler gcc] [--json]
        [--llama2 runq.c]

Models with initial weights, and context tables of which 6.5 % of the entries are not 0, as at the
end of the quickstart. The C runtime is compiled with -O3 and writes --tokens tokens (fewer for
large models), by the widest instructions of the processor and row by row; the time of a run that
writes one token is taken off. NumPy writes fewer. All take turns, and medians are printed. `memory`
is what the bandwidth allows, if all weights but the embedding are read from memory for each token.
With --llama2, the path of runq.c of github.com/karpathy/llama2.c, a transformer of about as many
weights, random ones of 8 bits, takes its turns: contexts of 256 tokens, -Ofast -march=native.
"""

import dataclasses
import json
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import common
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
}
LEAST_TOKENS = 10_000
BANDWIDTH = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(void) {
    size_t count = (size_t)1 << 25;
    uint64_t *words = malloc(count * 8), sum = 0;
    memset(words, 1, count * 8);
    for (int turn = 0; turn < 8; turn++)
        for (size_t i = 0; i < count; i++) sum += words[i] ^ (uint64_t)turn;
    printf("%llu", (unsigned long long)sum);
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


def bandwidth(directory: Path, compiler: str) -> float:
    """Bytes per second that one core reads from memory."""
    source, program = directory / "bandwidth.c", directory / "bandwidth"
    source.write_text(BANDWIDTH)
    subprocess.run([compiler, "-O3", "-march=native", "-o", program, source], check=True)
    took = seconds(program)
    source.write_text(BANDWIDTH.replace("turn < 8", "turn < 0"))
    subprocess.run([compiler, "-O3", "-march=native", "-o", program, source], check=True)
    return (8 << 28) / (took - seconds(program))


def transformer(source: Path, layers: int, width: int, read: int, folder: Path) -> list[str]:
    """Build llama2.c and a model of which about `read` weights are read for a token; its command.

    It must not end where it draws the token that begins texts, or it could not be measured.
    """
    text = source.read_text()
    ends = "if (next == 1) { break; }"
    assert ends in text, "not the runq.c that this benchmark knows"
    (folder / "runq.c").write_text(text.replace(ends, ""))
    program = folder / "runq"
    flags = ["-Ofast", "-march=native", "-w"]
    subprocess.run(["gcc", *flags, "-o", program, folder / "runq.c", "-lm"], check=True)
    V, group = common.VOCAB_SIZE, 32
    hidden = max(1, round((read / width - V - 4 * layers * width) / 3 / layers / group)) * group
    generator = np.random.default_rng(0)

    def matrices(count: int, size: int) -> bytes:
        scales = np.full(size // group, 0.02 / 127, np.float32).tobytes()
        return b"".join(
            generator.integers(-127, 128, size, np.int8).tobytes() + scales for _ in range(count)
        )

    head = struct.pack("<IiiiiiiiiBi", 0x616B3432, 2, width, hidden, layers, 4, 4, V, 256, 0, group)
    parts = [head.ljust(256, b"\0"), np.ones((2 * layers + 1) * width, np.float32).tobytes()]
    parts.append(matrices(1, V * width))
    parts += [matrices(layers, width * width) for _ in range(4)]
    parts += [matrices(layers, width * hidden) for _ in range(3)]
    parts.append(matrices(1, V * width))
    (folder / "model.bin").write_bytes(b"".join(parts))
    tokens = (struct.pack("<fi", 0, 1) + bytes([token or 1]) for token in range(V))
    (folder / "tokenizer.bin").write_bytes(struct.pack("<i", 1) + b"".join(tokens))
    words = [program, folder / "model.bin", "-z", folder / "tokenizer.bin", "-t", "0.8", "-p", "1"]
    return [*map(str, words), "-s", "1", "-n"]


def of_llama2(words: list[str]) -> float:
    """Tokens per second of llama2.c."""
    runs = 10
    took = sum(seconds(*words, "256") - seconds(*words, "1") for _ in range(runs))
    return 255 * runs / took


def main() -> None:
    parser = common.parser(__doc__, repeats=5)
    parser.add_argument("--tokens", type=int, default=100_000, help="that the C runtime writes")
    parser.add_argument("--compiler", default="gcc")
    parser.add_argument("--llama2", type=Path, metavar="FILE", help="its runq.c, to compare with")
    arguments = parser.parse_args()
    if arguments.tokens < LEAST_TOKENS:  # the difference of two runs would be noise
        parser.error(f"--tokens {arguments.tokens}: at least {LEAST_TOKENS}; fewer take no time")
    rows = []
    for name, model in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            directory, read = exported(model, Path(folder))
            program = directory / "model"
            command = [
                arguments.compiler,
                "-std=c99",
                "-O3",
                "-o",
                program,
                directory / "runtime.c",
            ]
            subprocess.run(command, check=True)
            loaded = runtime.load(directory)
            tokens = max(500, min(arguments.tokens, arguments.tokens * 200_000 // read))
            found: dict[str, list[float]] = {"c": [], "c_rows": [], "numpy": [], "bandwidth": []}
            peer = None
            if arguments.llama2:
                peer = transformer(arguments.llama2, model.layers, model.width, read, Path(folder))
                found["llama2"] = []
            for _ in range(arguments.repeats):
                found["c"].append(of_c(program, [], tokens))
                found["c_rows"].append(of_c(program, ["--path", "rows"], tokens // 4))
                if peer:
                    found["llama2"].append(of_llama2(peer))
                found["numpy"].append(of_numpy(loaded, max(50, tokens // 100)))
                found["bandwidth"].append(bandwidth(Path(folder), arguments.compiler))
            medians = {key: statistics.median(values) for key, values in found.items()}
            rows.append({"shape": name, "bytes_per_token": read, **medians})
            rows[-1]["memory"] = medians["bandwidth"] / read
            if not arguments.json:
                beside = f" llama2.c {medians['llama2']:,.0f}," if peer else ""
                print(
                    f"{name}: C {medians['c']:,.0f},{beside} row by row {medians['c_rows']:,.0f}, "
                    f"NumPy {medians['numpy']:,.0f} tokens/s; memory allows "
                    f"{rows[-1]['memory']:,.0f} ({medians['bandwidth'] / 1e9:.1f} GB/s, "
                    f"{read:,} bytes a token)",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps({"machine": common.machine(), "rows": rows}))


if __name__ == "__main__":
    main()
