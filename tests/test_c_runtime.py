"""runtime.c of an export: the bits of the NumPy runtime, wherever a compiler can be had."""

import dataclasses
import io
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_run import MODEL, export_tiny_run, tiny_run

from int_lm import compress, export, plugins, runtime
from int_lm.compile import trace
from int_lm.config import ModelConfig
from int_lm.export import c_runtime
from int_lm.model.params import Parameters
from tokenization import ByteTokenizer

SANITIZED = ("-fsanitize=undefined,address", "-fno-sanitize-recover=all")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")
TEXT = "Naïve café, 12 €: " * 3 + "end"
SAMPLERS = (
    runtime.Sampler(),
    runtime.Sampler(temperature=0.37, top_p=0.61, seed=77),
    runtime.Sampler(temperature=1.3, top_k=7, seed=2**32 - 1),
    runtime.Sampler(min_p=0.31, repetition_penalty=1.63, seed=5),
    runtime.Sampler(top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=3, repetition_window=4),
)
MODELS = {
    "egg": dataclasses.replace(MODEL, layers=2, direct=(1, 3), direct_bits=7),
    "rwkv": ModelConfig(architecture="rwkv", width=24, layers=2, direct=(2,), direct_bits=6),
    "gru": ModelConfig(architecture="plugins.gru:GRU", width=20, layers=2),
    "cache": ModelConfig(
        architecture="rwkv",
        width=8,
        layers=1,
        ffn_multiple=1,
        direct=(2,),
        direct_bits=6,
        cache=(1, 3, 2),
        cache_bits=5,
    ),
    "one": ModelConfig(architecture="rwkv", width=1, layers=1, ffn_multiple=1),
}


def exported(name: str, directory: Path) -> Path:
    """The export of a small model with random weights; nine tenths of rwkv's table are 0."""
    plugins.trust("plugins.gru:GRU")
    directory.mkdir(exist_ok=True)
    run = tiny_run(model=MODELS[name])
    if name == "rwkv":
        kept = np.random.default_rng(2).random((64, 256)) < 0.1
        kept[::3] = False
        tables = {
            key: np.where(kept, table, np.int8(0)) for key, table in run.weights.tables.items()
        }
        run = dataclasses.replace(run, weights=Parameters(run.weights.network, tables))
    return export_tiny_run(run, directory)


def built(directory: Path, *compiler: str) -> Path:
    """runtime.c of an export, compiled without a warning."""
    program = directory.parent / "model"
    command = [*compiler, *STRICT, "-o", program, directory / "runtime.c"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def said(*command: str | Path) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def refused(command: Sequence[str | Path]) -> None:
    """The command says one sentence, and ends with 2."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, ""), command
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def compare(directory: Path, command: Sequence[str | Path], samplers: int = 5) -> None:
    """The program's score of a text, samples and archives are those of the NumPy runtime."""
    model = export.load(directory)
    text = directory.parent / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    score = int(runtime.log2_likelihoods(model, [TEXT.encode()])[0])
    found = said(*command, "score", text).decode()
    assert f'"bytes": {len(TEXT.encode())}, "log2_likelihood": {score},' in found
    bits = re.search(r'"bits_per_byte": (\d+)\.(\d{6})', found)
    assert bits
    assert int(bits[1] + bits[2]) == 10**6 * -score // (2**16 * len(TEXT.encode()))
    for sampler in SAMPLERS[:samplers]:
        ids = runtime.generate(runtime.reader(model), b"de", sampler, tokens=25, stop=False)
        expected = (b"de" + bytes(ids)).decode("utf-8", "replace") + "\n"
        options = [f"--{name}={value}" for name, value in dataclasses.asdict(sampler).items()]
        found = said(*command, "sample", "--no_stop", "--prompt=de", "--tokens", "25", *options)
        assert found.decode() == expected
    compare_archives(model, command, directory.parent)


def compare_archives(
    model: runtime.Model, command: Sequence[str | Path], folder: Path, lanes: int = 3
) -> None:
    """The program writes the archive that Python writes, and reads the text in it."""
    likely = [
        bytes(runtime.generate(runtime.reader(model), b"", sampler, tokens=50, stop=False))
        for sampler in (runtime.Sampler(temperature=0.3, seed=seed) for seed in range(lanes))
    ]  # a model finds likely what it writes itself, from a fresh state in each lane
    codec, noise = codec_of(model), np.random.default_rng(0).bytes(60)
    for learn in (False, True)[: 2 if model.direct else 1]:
        flags = [f"--lanes={lanes}", "--overwrite", *(["--learn"] if learn else [])]
        for text, kind in ((b"".join(likely), 1), (noise, 2), (b"", 0)):
            archive = archive_of(codec, text, lanes, learn)
            assert archive[36] == kind
            (folder / "text").write_bytes(text)
            said(*command, "compress", folder / "text", folder / "archive", *flags)
            assert (folder / "archive").read_bytes() == archive
            said(*command, "decompress", folder / "archive", folder / "back", "--overwrite")
            assert (folder / "back").read_bytes() == text


def codec_of(model: runtime.Model) -> compress.Codec:
    return compress.Codec(model, ByteTokenizer().encode, ByteTokenizer().decode)


def archive_of(codec: compress.Codec, text: bytes, lanes: int = 0, learn: bool = False) -> bytes:
    target = io.BytesIO()
    compress.compress(codec, io.BytesIO(text), target, lanes=lanes, learn=learn)
    return target.getvalue()


def needed(*names: str) -> None:
    """Skip where a program is missing."""
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"needs {name}")


@pytest.mark.parametrize("name", MODELS)
def test_scores_and_text_are_those_of_numpy(name: str, tmp_path: Path) -> None:
    """Every architecture, a plug-in's too, by every way to multiply that the processor has."""
    needed("gcc")
    directory = exported(name, tmp_path)
    program = built(directory, "gcc", "-O0")
    compare(directory, [program])
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    ways = {"rows": "", "avx2": " avx2 ", "vnni": " avx512_vnni "}
    for way in (way for way, flag in ways.items() if flag in known):
        compare(directory, [program, "--path", way], samplers=1)


def test_a_vocabulary_of_pieces_is_read_and_written_as_ids(tmp_path: Path) -> None:
    """Scores and samples of ids, with the likelihood of wide vocabularies."""
    needed("gcc")
    run = tiny_run(700, MODELS["cache"])
    run = dataclasses.replace(run, tokenizer={**run.tokenizer, "kind": "pieces"})
    directory = export_tiny_run(tiny_run(700, run.config.model), tmp_path)
    text, _ = c_runtime.written(run.recipe.model, run.tokenizer)
    (directory / "runtime.c").write_text(text)
    program, model = built(directory, "gcc", "-O0"), export.load(directory)
    ids = np.random.default_rng(0).integers(1, 700, 50)
    (tmp_path / "ids.txt").write_text("\n".join(map(str, ids)))
    score = runtime.log2_likelihoods(model, [ids])[0]
    found = said(program, "score", tmp_path / "ids.txt").decode()
    assert f'{{"ids": 50, "log2_likelihood": {score}, "bits_per_id": ' in found
    drawn = runtime.generate(
        runtime.reader(model), [5, 600], runtime.Sampler(), tokens=20, stop=False
    )
    words = [program, "sample", "--no_stop", "--tokens", "20", "--prompt", "5 600"]
    assert said(*words).split() == [str(token).encode() for token in (5, 600, *drawn)]
    assert said(*words[:-1], " 5\t600\v\f\r\n") == said(*words)
    for prompt in ("5 600 x", "5 700", "5 -1"):
        refused([*words[:-1], prompt])


def test_no_number_is_real(tmp_path: Path) -> None:
    """runtime.c names no type and no function of numbers that are no integers, in any comment."""
    text = (exported("rwkv", tmp_path) / "runtime.c").read_text()
    assert not re.search(r"\b(float|double|math\.h|malloc|calloc|realloc)\b", text)
    code = re.sub(r"/\*.*?\*/|'(\\.|[^'])'|\"(\\.|[^\"])*\"", "", text, flags=re.DOTALL)
    assert not re.search(r"(?<!\w)\d+\.|\.\d|(?<![\w])\d+[eE]", code)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    """Any damage of the file ends in one sentence and exit code 2."""
    needed("gcc")
    directory = exported("rwkv", tmp_path)
    program, weights = (
        built(directory, "gcc", "-O0", *SANITIZED),
        directory / "model.safetensors",
    )
    sound = weights.read_bytes()
    length = int.from_bytes(sound[:8], "little")
    header = sound[8 : 8 + length]
    other = header.replace(b'format_version\\": 2', b'format_version\\": 9')
    assert other != header
    damaged = [
        b"",
        sound[:7],
        sound[:100],
        sound[:-1],
        sound[:-40] + bytes([sound[-40] ^ 1]) + sound[-39:],
        (2**40).to_bytes(8, "little") + sound[8:],
        sound[:8] + header.replace(b"I8", b"I9", 1) + sound[8 + length :],
        sound[:8] + header.replace(b"context_2/rows", b"context_2/r0ws") + sound[8 + length :],
        sound[:8] + header.replace(b"data_offsets", b"data_offset5", 1) + sound[8 + length :],
        sound[:8] + header.replace(b"embedding", b"embeddinG") + sound[8 + length :],
        sound[:8] + other + sound[8 + length :],
    ]
    generator = np.random.default_rng(0)
    elsewhere = sound.index(b"format_version")  # behind the digest of config.json, not read here
    for place in generator.integers(elsewhere, 8 + length, 20):
        flipped = bytes([sound[place] ^ int(generator.integers(1, 256))])
        damaged.append(sound[:place] + flipped + sound[place + 1 :])
    for content in damaged:
        weights.write_bytes(content)
        refused([program, "sample"])
    weights.write_bytes(sound)
    said(program, "sample", "--tokens", "1")


def test_weights_in_the_program(tmp_path: Path) -> None:
    """Only context tables take memory; a tensor that lies outside of the file is refused."""
    needed("gcc", "nm")
    directory = exported("rwkv", tmp_path)
    array, weights = tmp_path / "weights.h", (directory / "model.safetensors").read_bytes()

    def compiled(content: bytes) -> Path:
        numbers = ",".join(map(str, content))
        array.write_text(f"const unsigned char model_array[] = {{{numbers}}};\n")
        options = (f'-DMODEL_ARRAY="{array}"', "-DROOM_FOR_TABLES", "-DBLOCK_BYTES=512")
        return built(directory, "gcc", "-O0", *SANITIZED, *options)

    program = compiled(weights)
    compare(directory, [program], samplers=1)
    symbols = said("nm", "-S", program).decode()
    memory = re.search(r"^\w+ (\w+) b memory$", symbols, re.MULTILINE)
    assert memory
    assert 64 * 256 <= int(memory[1], 16) < 64 * 256 + 256
    outside = re.sub(rb'(data_offsets":\[)(\d+),(\d+)', _far, weights, count=1)
    assert outside != weights
    length = int.from_bytes(weights[:8], "little") + len(outside) - len(weights)
    refused([compiled(length.to_bytes(8, "little") + outside[8:]), "sample"])


def _far(found: re.Match[bytes]) -> bytes:
    """Places of a tensor near the end of the address space."""
    begin, end = int(found[2]) + 2**63, int(found[3]) + 2**63
    return found[1] + f"{begin},{end}".encode()


def test_the_model_beside_the_program_is_read(tmp_path: Path) -> None:
    """Not one that lies beside the text that it scores."""
    needed("gcc")
    directory = exported("one", tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.safetensors").write_text("another model")
    (elsewhere / "text.txt").write_text(TEXT)
    command = ["gcc", *STRICT, "-o", "model", "runtime.c"]
    subprocess.run(command, cwd=directory, check=True)
    found = said(directory / "model", "score", elsewhere / "text.txt").decode()
    score = runtime.log2_likelihoods(export.load(directory), [TEXT.encode()])[0]
    assert f'"log2_likelihood": {score},' in found


def test_names_of_the_fixed_parts_are_free_for_a_network(tmp_path: Path) -> None:
    """A plug-in's tensors and variables may have any names."""
    needed("gcc")
    plugins.trust("plugins.names:NAMES")
    run = tiny_run(model=ModelConfig(architecture="plugins.names:NAMES", width=4, layers=1))
    text, lacking = c_runtime.written(run.recipe.model, run.tokenizer)
    assert not lacking
    assert "int32_t leading_zeros2 =" in text
    (tmp_path / "runtime.c").write_text(text)
    built(tmp_path, "gcc", "-fsyntax-only")


def test_standard_input_is_scored_once(mistaken: Path) -> None:
    """A second `-` would find nothing left, or with threads a part of it."""
    command = [mistaken, "score", "-", "-"]
    found = subprocess.run(command, input=TEXT.encode(), capture_output=True, check=False)
    assert (found.returncode, found.stdout) == (2, b"")
    assert b"standard input can be scored once" in found.stderr


def test_sentences_name_what_they_speak_of(mistaken: Path, tmp_path: Path) -> None:
    """The weights that were read, a way that is none, and an empty file among others."""
    other, text, empty = (tmp_path / name for name in ("other", "text", "empty"))
    for path, data in ((other, b"\1" + bytes(9)), (text, b"some text"), (empty, b"")):
        path.write_bytes(data)
    for words, sentence in (
        (["sample", "--model", other], f"error: {other} is damaged, or of another model: "),
        (["sample", "--path", "row"], "error: --path is vnni, avx2, neon or rows, and not row"),
        (["score", empty], f"error: nothing to score: no text in {empty}"),
        (["score", text, empty], f"left out, because it is empty: {empty}"),
    ):
        found = subprocess.run([mistaken, *words], capture_output=True, text=True, check=False)
        assert found.stderr.startswith(sentence) and found.stderr.count("\n") == 1
    assert found.stdout == said(mistaken, "score", text).decode()


def test_no_threads_at_all_are_refused_by_the_compiler(tmp_path: Path) -> None:
    """With 0 of them a loop over files would never end."""
    needed("gcc")
    program = exported("one", tmp_path) / "runtime.c"
    command = ["gcc", "-std=c99", "-fsyntax-only", "-DTHREADS=0", program]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert "-DTHREADS=N takes a number of threads" in found.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["score"],
        ["score", "missing.txt"],
        ["sample", "more"],
        ["train"],
        ["sample", "--tokens", "0"],
        ["sample", "--tokens"],
        ["sample", "--seed", "4294967296"],
        ["sample", "--temperature", "warm"],
        ["sample", "--temperature", "-1"],
        ["sample", "--top_p", "0"],
        ["sample", "--top_p", "1.01"],
        ["sample", "--top", "1"],
        ["--model", "missing", "sample"],
        ["sample", "--min_p", "1.5"],
        ["sample", "--repetition_penalty", "0.9"],
        ["sample", "--repetition_penalty", "100.5"],
        ["sample", "--repetition_window", "-1"],
        ["sample", "--stop", ""],
        ["sample", *(["--stop", "x"] * 17)],
        ["sample", "--prompt", "a", "--prompt_file", "b"],
        ["sample", "--prompt_file", "missing.txt"],
        ["sample", "--no_stop=yes"],
        ["compress"],
        ["compress", "one"],
        ["compress", "missing.txt", "x"],
        ["compress", "one", "two", "three"],
        ["compress", "one", "two", "--lanes", "1025"],
        ["compress", "one", "two", "--learn"],
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], mistaken: Path) -> None:
    """A mistake on the command line is answered with one line and exit code 2."""
    refused([mistaken, *arguments])


@pytest.mark.parametrize("command", ["score", "sample"])
def test_a_full_disk_is_said(command: str, mistaken: Path, tmp_path: Path) -> None:
    """What could not be written is not passed over."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "text.txt").write_text(TEXT)
    words = [mistaken, command, *([tmp_path / "text.txt"] if command == "score" else [])]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: the result could not be written\n")


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed("gcc")
    return built(exported("one", tmp_path_factory.mktemp("mistakes")), "gcc", "-O0")


def test_a_network_without_counterpart_is_said_to_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation that C has not leaves the export without runtime.c, and the card says why."""
    monkeypatch.delitem(trace._POINTWISE, "abs")
    directory = exported("one", tmp_path)
    assert not (directory / "runtime.c").exists()
    assert "no `runtime.c` of this network: it has no counterpart in C for the operation abs" in (
        directory / "README.md"
    ).read_text().replace("\n", " ")
