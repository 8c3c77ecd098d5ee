"""Other programs that write text, each with a model of about as many weights as one of ours.

They are built by gcc or CMake with -O3 -march=native, and compute with random weights: how fast
they are does not depend on them. Every function here gives words of a command line to which the
number of tokens is to be added, and which writes so many on one core. Axes: V vocabulary, D width,
F feed-forward width.
"""

import struct
import subprocess
from pathlib import Path

import numpy as np

from benchmarks import common

V, GROUP = common.VOCAB_SIZE, 32  # weights of 8 bits have a scale for each group of 32
CONTEXT = 256  # tokens that llama2.c reads at most

# evaluates a model token by token, each the likeliest one after the last, with one thread
DRIVER = """
#include <rwkv.h>
#include <stdlib.h>
#include <string.h>

int main(int count, char **words) {
    if (count == 4 && strcmp(words[1], "quantize") == 0) {
        return !rwkv_quantize_model_file(words[2], words[3], "Q8_0");
    }
    struct rwkv_context *model = count == 3 ? rwkv_init_from_file(words[1], 1, 0) : NULL;
    if (model == NULL) {
        return 2;
    }
    float *state = malloc(sizeof(float) * rwkv_get_state_len(model));
    float *logits = malloc(sizeof(float) * rwkv_get_logits_len(model));
    const size_t size = rwkv_get_logits_len(model);
    uint32_t token = 1;
    rwkv_init_state(model, state);
    for (long left = atol(words[2]); left > 0; left--) {
        if (!rwkv_eval(model, token, state, state, logits)) {
            return 2;
        }
        token = 0;
        for (uint32_t v = 1; v < size; v++) {
            token = logits[v] > logits[token] ? v : token;
        }
    }
    return 0;
}
"""


def llama2(source: Path, layers: int, D: int, read: int, folder: Path) -> list[str]:
    """Build llama2.c and a transformer of which about `read` weights are read for a token.

    It must not end where it draws the token that begins texts, or it could not be measured. At
    most `CONTEXT` tokens can be asked for.
    """
    text = source.read_text()
    ends = "if (next == 1) { break; }"
    assert ends in text, "not the runq.c that this benchmark knows"
    (folder / "runq.c").write_text(text.replace(ends, ""))
    program = folder / "runq"
    flags = ["-Ofast", "-march=native", "-w"]
    subprocess.run(["gcc", *flags, "-o", program, folder / "runq.c", "-lm"], check=True)
    F = max(1, round((read / D - V - 4 * layers * D) / 3 / layers / GROUP)) * GROUP
    generator = np.random.default_rng(0)

    def matrices(count: int, size: int) -> bytes:
        scales = np.full(size // GROUP, 0.02 / 127, np.float32).tobytes()
        return b"".join(
            generator.integers(-127, 128, size, np.int8).tobytes() + scales for _ in range(count)
        )

    head = struct.pack("<IiiiiiiiiBi", 0x616B3432, 2, D, F, layers, 4, 4, V, CONTEXT, 0, GROUP)
    parts = [head.ljust(256, b"\0"), np.ones((2 * layers + 1) * D, np.float32).tobytes()]
    parts.append(matrices(1, V * D))
    parts += [matrices(layers, D * D) for _ in range(4)]
    parts += [matrices(layers, D * F) for _ in range(3)]
    parts.append(matrices(1, V * D))
    (folder / "model.bin").write_bytes(b"".join(parts))
    tokens = (struct.pack("<fi", 0, 1) + bytes([token or 1]) for token in range(V))
    (folder / "tokenizer.bin").write_bytes(struct.pack("<i", 1) + b"".join(tokens))
    words = [program, folder / "model.bin", "-z", folder / "tokenizer.bin", "-t", "0.8", "-p", "1"]
    return [*map(str, words), "-s", "1", "-n"]


def build_rwkv_cpp(source: Path, folder: Path) -> Path:
    """Build rwkv.cpp, with ggml in its folder of this name; a program that evaluates its models."""
    native = ["-DRWKV_STANDALONE=ON", "-DRWKV_NATIVE=ON", "-DGGML_NATIVE=ON", "-DGGML_OPENMP=OFF"]
    native += [f"-DCMAKE_{language}_FLAGS=-O3 -march=native -w" for language in ("C", "CXX")]
    build, program = folder / "build", folder / "driver"
    subprocess.run(["cmake", "-S", source, "-B", build, *native], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build, "--parallel"], check=True, capture_output=True)
    (folder / "driver.c").write_text(DRIVER)
    places = [f"-Wl,-rpath,{build}", f"-Wl,-rpath,{build / 'ggml' / 'src'}"]
    libraries = ["-L", build, "-L", build / "ggml" / "src", "-lrwkv", "-lggml", "-lggml-base"]
    words = ["gcc", "-O3", "-o", program, folder / "driver.c", "-I", source, *places, *libraries]
    subprocess.run(words, check=True)
    return program


def rwkv_cpp(program: Path, layers: int, D: int, read: int, folder: Path) -> list[str]:
    """An RWKV-4 of which about `read` weights are read for a token, quantized by rwkv.cpp to Q8_0.

    Of its versions 4 does the least for a token beside products of matrices.
    """
    F = max(1, round((read / D - V - 5 * layers * D) / 2 / layers / GROUP)) * GROUP
    generator = np.random.default_rng(0)
    parts = [struct.pack("=6i", 0x67676D66, 101, V, D, layers, 1)]

    def add(name: str, *shape: int, fill: float | None = None) -> None:
        """A tensor: matrices of 16-bit floats at random, vectors of 32-bit ones."""
        half, key = len(shape) > 1, name.encode()
        values = (
            generator.normal(0, shape[-1] ** -0.5, shape) if fill is None else np.full(shape, fill)
        )
        sizes = struct.pack(f"={3 + len(shape)}i", len(shape), len(key), int(half), *shape[::-1])
        parts.append(sizes + key + values.astype(np.float16 if half else np.float32).tobytes())

    def norm(name: str) -> None:
        add(f"{name}.weight", D, fill=1)
        add(f"{name}.bias", D, fill=0)

    add("emb.weight", V, D)
    norm("blocks.0.ln0")
    for block in (f"blocks.{layer}" for layer in range(layers)):
        norm(f"{block}.ln1")
        norm(f"{block}.ln2")
        for name in ("att.time_mix_k", "att.time_mix_v", "att.time_mix_r"):
            add(f"{block}.{name}", D, fill=0.5)
        for name in ("ffn.time_mix_k", "ffn.time_mix_r"):
            add(f"{block}.{name}", D, fill=0.5)
        add(f"{block}.att.time_first", D, fill=0.3)
        add(f"{block}.att.time_decay", D, fill=-0.5)
        for name in ("att.key", "att.value", "att.receptance", "att.output", "ffn.receptance"):
            add(f"{block}.{name}.weight", D, D)
        add(f"{block}.ffn.key.weight", F, D)
        add(f"{block}.ffn.value.weight", D, F)
    norm("ln_out")
    add("head.weight", V, D)
    floats, bytes_ = folder / "rwkv_f16.bin", folder / "rwkv_q8_0.bin"
    floats.write_bytes(b"".join(parts))
    words = [program, "quantize", floats, bytes_]
    subprocess.run(words, check=True, capture_output=True)
    return [str(program), str(bytes_)]
