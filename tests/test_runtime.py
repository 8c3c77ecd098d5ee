"""The NumPy runtime: bit for bit what JAX computes, on its own, and only from a sound export."""

import dataclasses
import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from tiny_run import MODEL, export_tiny_run, tiny_run

from int_lm import export, runtime
from int_lm.arithmetic import noise
from int_lm.config import ModelConfig
from int_lm.measure import evaluate
from int_lm.model import layers, likelihood, perturb
from int_lm.run import Run
from tests import presets


@pytest.fixture(scope="module")
def run() -> Run:
    return tiny_run()


@pytest.fixture(scope="module")
def directory(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny_run(run, tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="module")
def model(directory: Path) -> runtime.Model:
    return runtime.load(directory)


# The same bits as JAX


@pytest.mark.parametrize("count", [1, 2, 3, 8, 32, 100, 128, 512])
def test_linear_equals_the_model_s(count: int) -> None:
    """The linear is the one of training for sizes on and between powers of two, at extremes too."""
    generator = np.random.default_rng(count)
    x = generator.integers(-127, 128, (5, count))
    weight = generator.integers(-127, 128, (7, count)).astype(np.int8)
    x[0], weight[0], weight[1] = 127, 127, -127
    expected = layers.linear(perturb.Weight(jnp.asarray(weight)), jnp.asarray(x, jnp.int8))
    np.testing.assert_array_equal(runtime.linear(weight, x.astype(np.int32)), expected)


def test_integer_dot_is_exact_at_its_bound() -> None:
    """The largest sum that training allows, and one below it, come out of float64 unrounded."""
    count = 2**31 // 127**2 // 2
    weight = np.full((2, count), 127, np.int8)
    weight[1, 0] = 126
    x = np.full((1, count), 127, np.int32)
    assert runtime.integer_dot(x, weight).tolist() == [[count * 127 * 127, count * 127 * 127 - 127]]


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        MODEL,
        presets.egg(width=1, layers=1, ffn_multiple=1),
        presets.egg(width=64, layers=2),
        dataclasses.replace(MODEL, direct=(1, 3), direct_bits=9),
        dataclasses.replace(MODEL, architecture="rwkv"),
        ModelConfig(architecture="rwkv", width=1, layers=1, ffn_multiple=1),
        ModelConfig(architecture="rwkv", width=64, layers=2, direct=(5, 1, 2), direct_bits=8),
    ],
)
def test_logits_and_states_equal_jax(shape: ModelConfig, extreme: bool, tmp_path: Path) -> None:
    """Every logit and state of 40 tokens equals JAX's, where separators reset the state."""
    run = tiny_run(model=shape, extreme=extreme)
    model = runtime.load(export_tiny_run(run, tmp_path))
    bare = jax.tree.map(jnp.asarray, perturb.unperturbed(run.weights))
    step = jax.jit(run.recipe.model.step)
    tokens = np.random.default_rng(0).integers(0, 256, (40, 6))
    tokens[np.random.default_rng(1).random((40, 6)) < 0.1] = 0
    expected_state, state = run.recipe.model.initial_state(6), model.initial_state(6)
    for row in tokens:
        expected_state, expected, _ = step(bare, expected_state, jnp.asarray(row, jnp.int32))
        state, logits = model.step(state, row)
        np.testing.assert_array_equal(logits, expected)
        assert state.keys() == expected_state.keys()
        for name, leaf in state.items():
            np.testing.assert_array_equal(leaf, expected_state[name])


@pytest.mark.parametrize("vocab_size", [1, 2, 256, 257, 5000])
def test_log2_likelihood_equals_jax(vocab_size: int) -> None:
    """Narrow and wide vocabularies, random, uniform and one-sided logits give JAX's integers."""
    narrow = vocab_size <= likelihood.NARROW_VOCABULARY
    tables = export.tensors_of(tiny_run(vocab_size, presets.egg(width=1, layers=1)))
    model = runtime.Model(
        {}, runtime.Egg, {}, tables[runtime.EXP2_TABLE], tables[runtime.LOG2_TABLE]
    )
    assert tables[runtime.EXP2_TABLE][0] == 1 << (22 if narrow else 28)
    generator = np.random.default_rng(vocab_size)
    logits = generator.integers(-127, 128, (64, vocab_size)).astype(np.int8)
    logits[1], logits[2], logits[3, :-1] = 0, -127, -127
    logits[4:20] = np.clip(generator.normal(0, 5, (16, vocab_size)), -127, 127).astype(np.int8)
    targets = generator.integers(0, vocab_size, 64)
    expected = likelihood.log2_likelihood(jnp.asarray(logits), jnp.asarray(targets, jnp.int32))
    np.testing.assert_array_equal(runtime.log2_likelihood(model, logits, targets), expected)


@pytest.mark.parametrize(
    ("vocab_size", "shape"),
    [
        (256, MODEL),
        (700, MODEL),
        (256, dataclasses.replace(MODEL, architecture="rwkv", direct=(2, 4), direct_bits=10)),
        (700, dataclasses.replace(MODEL, architecture="rwkv")),
    ],
)
def test_documents_score_as_in_jax(
    vocab_size: int, shape: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents of all lengths, empty ones too, in more batches than one, score as in JAX."""
    monkeypatch.setattr(runtime, "LANES", 4)
    run = tiny_run(vocab_size, shape)
    model = runtime.load(export_tiny_run(run, tmp_path))
    generator = np.random.default_rng(3)
    lengths = [0, 1, 90, 3, 17, 17, 2, 60, 0, 5]
    documents = [generator.integers(1, vocab_size, n).astype(np.uint16) for n in lengths]
    expected = evaluate.log2_likelihoods(run.recipe.model, run.weights, documents)
    read: list[int] = []
    found = runtime.log2_likelihoods(model, documents, progress=read.append)
    assert found.dtype == np.int64
    assert found.tolist() == expected.tolist()
    assert sum(read) == sum(lengths) + len(lengths)


def test_documents_may_be_bytes_or_none(model: runtime.Model) -> None:
    """Bytes score as their values; no documents have no scores; a foreign id is refused."""
    expected = runtime.log2_likelihoods(model, [[104, 105]])
    assert runtime.log2_likelihoods(model, [b"hi"]).tolist() == expected.tolist()
    assert runtime.log2_likelihoods(model, []).tolist() == []
    for foreign in ([3, 256], [-1]):
        with pytest.raises(ValueError, match="outside the vocabulary of 256"):
            runtime.log2_likelihoods(model, [[1], foreign])


def test_tables_come_from_the_export(model: runtime.Model) -> None:
    """The likelihood uses the exported tables: others give other numbers."""
    before = runtime.log2_likelihoods(model, [b"text"])
    for name in ("exp2_table", "log2_table"):
        table = getattr(model, name).copy()
        table[1:-1] -= table[1:-1] // 8
        changed = dataclasses.replace(model, **{name: table})
        assert runtime.log2_likelihoods(changed, [b"text"]).tolist() != before.tolist()


# Draws

GOLDEN = [144, 181, 49, 180, 232, 7, 185, 166, 240, 65, 38, 180]
GOLDEN_RESTRICTED = [68, 180, 38, 232, 68, 240, 221, 57, 79, 120, 30, 161]


@given(*[st.integers(0, 2**32 - 1)] * 4)
def test_random_words_are_those_of_training(a: int, b: int, c: int, d: int) -> None:
    """The generator, in Python integers, is `noise`'s Threefry-2x32-20."""
    words = [np.array([word], np.uint32) for word in (a, b, c, d)]
    left, right = noise.threefry2x32((words[0], words[1]), (words[2], words[3]))
    assert runtime.threefry2x32((a, b), (c, d)) == int(left[0]) << 32 | int(right[0])


def draws(logits: list[int], count: int, **settings: float) -> list[int]:
    """`count` draws from one distribution."""
    sampler = runtime.Sampler(**settings)  # type: ignore[arg-type]
    return [sampler.choose(np.array(logits, np.int8), number) for number in range(count)]


def test_draws_are_the_same_everywhere() -> None:
    """Golden draws: a seed gives the same text on every machine and in every version."""
    logits = [(37 * i) % 101 - 50 for i in range(256)]
    advice = "texts of earlier versions can no longer be repeated; if that is meant, log it"
    assert draws(logits, 12, temperature=1.0, seed=5) == GOLDEN, advice
    restricted = draws(logits, 12, temperature=0.7, seed=6, top_k=40, top_p=0.9)
    assert restricted == GOLDEN_RESTRICTED, advice


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    """Frequencies agree with 2^(logit / (16 T)), within five standard deviations."""
    logits, count = [40, 24, 24, 0, -100], 20_000
    weights = [2.0 ** (x / 16 / temperature) for x in logits]
    frequencies = np.bincount(draws(logits, count, temperature=temperature), minlength=5)
    for frequency, weight in zip(frequencies, weights, strict=True):
        p = weight / sum(weights)
        assert abs(frequency - count * p) <= 5 * math.sqrt(count * p * (1 - p)) + 1


def test_greedy_takes_the_lowest_of_the_likeliest() -> None:
    """Temperature 0 is the argmax, the lowest id of equals; so is nearly 0, and top_k 1."""
    logits = [3, 90, -127, 90, 89]
    assert set(draws(logits, 20, temperature=0)) == {1}
    assert set(draws(logits, 20, temperature=1e-300)) == {1, 3}
    assert set(draws(logits, 20, top_k=1)) == {1}


def test_top_k_keeps_the_k_likeliest() -> None:
    """Of equals the lower ids are kept; a k above the vocabulary keeps all."""
    logits = [0, 5, 5, 5, 1]
    assert set(draws(logits, 200, temperature=5.0, top_k=2)) == {1, 2}
    assert set(draws(logits, 400, temperature=5.0, top_k=9)) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_fewest_that_suffice() -> None:
    """With p = 1/2, 1/4, 1/8, 1/8: exactly 3/4 takes two, a little more takes three."""
    logits = [0, 16, 32, 0]
    for top_p, expected in (
        (1e-9, {2}),
        (0.5, {2}),
        (0.75, {1, 2}),
        (0.76, {0, 1, 2}),
        (1.0, {0, 1, 2, 3}),
    ):
        assert set(draws(logits, 300, temperature=1.0, top_p=top_p)) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_impossible_samplers_are_refused(settings: dict) -> None:
    """A value out of range is named with its bound."""
    with pytest.raises(ValueError, match=f"^{next(iter(settings))} is .*, must be "):
        runtime.Sampler(**settings)


def test_any_temperature_has_weights() -> None:
    """From the smallest to the largest float, the likeliest weighs 2^40 and none is negative."""
    for temperature in (5e-324, 1e-9, 0.3, 1e9, 1.7e308):
        weights = runtime.sampling_weights(temperature)
        assert weights[0] == 2**40
        assert (np.diff(weights) <= 0).all() and weights[-1] >= 0


def test_generation_feeds_what_it_yields() -> None:
    """The separator, the prompt and each yielded token are read once, the last one not at all."""
    read: list[int] = []

    def reader(token: int) -> np.ndarray:
        read.append(token)
        logits = np.full(5, -127, np.int8)
        logits[(token + 1) % 5] = 127
        return logits

    greedy = runtime.Sampler(temperature=0)
    assert list(runtime.generate(reader, [2], greedy, tokens=9)) == [3, 4]
    assert read == [0, 2, 3, 4]
    read.clear()
    assert list(runtime.generate(reader, [], greedy, tokens=6, stop=False)) == [1, 2, 3, 4, 0, 1]
    assert read == [0, 1, 2, 3, 4, 0]


# Loading


def rewrite(
    directory: Path, to: Path, change: Callable[[dict, dict, bytearray], None]
) -> runtime.Model:
    """Load a copy of an export whose header, metadata and data `change` has edited."""
    shutil.copytree(directory, to)
    path = to / runtime.WEIGHTS_FILE
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), bytearray(content[start:])
    metadata = json.loads(header["__metadata__"][runtime.METADATA_KEY])
    change(header, metadata, data)
    if "__metadata__" in header:
        header["__metadata__"] = {runtime.METADATA_KEY: json.dumps(metadata)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    return runtime.load(to)


def test_editing_itself_does_no_harm(directory: Path, tmp_path: Path, model: runtime.Model) -> None:
    """A header rewritten with the same content loads: below, it is the edits that fail."""
    again = rewrite(directory, tmp_path / "copy", lambda *_: None)
    assert again.config == model.config
    for name, value in model.weights.items():
        np.testing.assert_array_equal(again.weights[name], value)


def put(header: dict, metadata: dict, data: bytearray, name: str, array: np.ndarray) -> None:
    """Replace a tensor, digest included."""
    header[name]["data_offsets"] = [len(data), len(data) + array.nbytes]
    header[name]["shape"] = list(array.shape)
    data += array.tobytes()
    metadata["sha256"][name] = hashlib.sha256(array.tobytes()).hexdigest()


def offsets(begin: int, end: int) -> Callable[[dict, dict, bytearray], None]:
    return lambda h, m, d: h["embedding"].update(data_offsets=[begin, end])


EDITS: dict[str, tuple[Callable[[dict, dict, bytearray], object], str]] = {
    "version": (lambda h, m, d: m.update(format_version=3), "format version is 3"),
    "config digest": (lambda h, m, d: m.update(config_sha256="0"), "not the one that was written"),
    "missing tensor": (lambda h, m, d: h.pop("head"), "does not hold the tensors"),
    "additional tensor": (lambda h, m, d: h.update(more=h["head"]), "does not hold the tensors"),
    "missing digest": (lambda h, m, d: m["sha256"].pop("head"), "does not hold the tensors"),
    "dtype": (lambda h, m, d: h["head"].update(dtype="U8"), "head is .*'U8'.* must be .*'I8'"),
    "shape": (lambda h, m, d: h["head"].update(shape=[24, 256]), "head is .*24, 256"),
    "behind the end": (offsets(2**40, 2**40 + 6144), "embedding does not lie inside"),
    "before the start": (offsets(-8, 6136), "embedding does not lie inside"),
    "too short": (offsets(0, 6143), "embedding does not lie inside"),
    "no offsets": (lambda h, m, d: h["head"].pop("data_offsets"), "is damaged"),
    "three offsets": (lambda h, m, d: h["head"].update(data_offsets=[0, 1, 2]), "is damaged"),
    "entry is no object": (lambda h, m, d: h.update(head=3), "is damaged"),
    "no metadata": (lambda h, m, d: h.pop("__metadata__"), "is damaged"),
    "data": (lambda h, m, d: d.__setitem__(slice(None), bytes(len(d))), "SHA-256 differs"),
    "-128": (
        lambda h, m, d: put(h, m, d, "final_norm", np.full(24, -128, np.int8)),
        r"final_norm holds -128, outside \[-127, 127\]",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_altered_weights_file_is_refused(name: str, directory: Path, tmp_path: Path) -> None:
    """Each kind of damage, or of forgery, is one sentence that names the export and the trouble."""
    change, message = EDITS[name]
    with pytest.raises(runtime.ExportError, match=message) as caught:
        rewrite(directory, tmp_path / "copy", change)  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{tmp_path / 'copy'} is no sound export: ")
    assert "\n" not in str(caught.value)


def test_a_tensor_put_back_whole_is_accepted(directory: Path, tmp_path: Path) -> None:
    """The edit that the test of -128 makes is sound in all but that value."""
    vector = np.full(24, -127, np.int8)
    edited = rewrite(
        directory, tmp_path / "copy", lambda h, m, d: put(h, m, d, "final_norm", vector)
    )
    np.testing.assert_array_equal(edited.weights["final_norm"], vector)


def test_every_flipped_bit_is_caught(directory: Path, tmp_path: Path) -> None:
    """A bit flipped anywhere in either file is an ExportError, or changes nothing that is read
    (the padding of the header)."""
    original = runtime.load(directory)
    generator = np.random.default_rng(0)
    caught = 0
    for name in (runtime.WEIGHTS_FILE, runtime.CONFIG_FILE):
        copy = tmp_path / name
        shutil.copytree(directory, copy)
        content = (copy / name).read_bytes()
        for position in [*range(8), *generator.integers(8, len(content), 150)]:
            flipped = bytearray(content)
            flipped[position] ^= 1 << int(generator.integers(8))
            (copy / name).write_bytes(flipped)
            try:
                loaded = runtime.load(copy)
            except runtime.ExportError:
                caught += 1
                continue
            assert loaded.config == original.config
            for path, value in original.weights.items():
                np.testing.assert_array_equal(loaded.weights[path], value)
    assert caught >= 312  # all, in practice, but padding of the header


def test_a_file_cut_short_is_refused(directory: Path, tmp_path: Path) -> None:
    """Whatever the length at which either file ends, nothing but an ExportError comes of it."""
    for name in (runtime.WEIGHTS_FILE, runtime.CONFIG_FILE):
        copy = tmp_path / name
        shutil.copytree(directory, copy)
        content = (copy / name).read_bytes()
        for length in (0, 5, 8, 9, 300, len(content) // 2, len(content) - 1):
            (copy / name).write_bytes(content[:length])
            with pytest.raises(runtime.ExportError, match="is no sound export"):
                runtime.load(copy)


def test_lengths_are_checked_before_memory_is_taken(directory: Path, tmp_path: Path) -> None:
    """A header that claims 2^62 bytes is refused, not allocated."""
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    path = copy / runtime.WEIGHTS_FILE
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(runtime.ExportError, match="cut short"):
        runtime.load(copy)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vocab_size", -256, "no positive integer"),
        ("vocab_size", True, "no positive integer"),
        ("vocab_size", "256", "no positive integer"),
        ("model", {"architecture": "egg"}, "is damaged"),
        ("model", {"architecture": "hen", "width": 1}, "architecture is 'hen', .* knows egg"),
        ("tokenizer", None, "is damaged"),
    ],
)
def test_an_impossible_configuration_is_refused(
    directory: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    """A configuration that its own digest covers is still read with care."""
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    config = {**json.loads((copy / runtime.CONFIG_FILE).read_text()), key: value}
    text = json.dumps(config).encode()
    (copy / runtime.CONFIG_FILE).write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    with pytest.raises(runtime.ExportError, match=message):
        rewrite(copy, tmp_path / "edited", lambda h, m, d: m.update(config_sha256=digest))


def test_a_directory_without_an_export_is_named(tmp_path: Path) -> None:
    """No directory, an empty one, a file: the sentence names it and the reason."""
    (tmp_path / "file").write_text("x")
    for name in ("nowhere", ".", "file"):
        with pytest.raises(runtime.ExportError, match="is no export that can be read") as caught:
            runtime.load(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))


SPARSE = dataclasses.replace(MODEL, direct=(2, 4), direct_bits=9)


def sparse_run(density: float = 0.05, vocab_size: int = 256) -> Run:
    """A run whose context tables are mostly 0; of the second one, whole rows."""
    run = tiny_run(vocab_size, SPARSE)
    generator = np.random.default_rng(5)
    tables = {
        name: np.where(generator.random(table.shape) < density, table, np.int8(0))
        for name, table in run.weights.tables.items()
    }
    tables["context_4"][generator.random(512) < 0.5] = 0
    tables["context_4"][7] = 1  # a row without a 0
    return dataclasses.replace(run, weights=dataclasses.replace(run.weights, tables=tables))


@pytest.mark.parametrize("vocab_size", [256, 300])
def test_sparse_tables_come_back(vocab_size: int, tmp_path: Path) -> None:
    """Stored without zeros, read row by row or whole, they are what they were; scores too."""
    run = sparse_run(vocab_size=vocab_size)
    directory = export_tiny_run(run, tmp_path)
    dense = 2 * 512 * vocab_size
    assert (directory / runtime.WEIGHTS_FILE).stat().st_size < 0.5 * dense + 2**16
    model = runtime.load(directory)
    documents = [np.random.default_rng(n).integers(1, 256, 60).astype(np.uint16) for n in range(3)]
    expected = evaluate.log2_likelihoods(run.recipe.model, run.weights, documents)
    assert runtime.log2_likelihoods(model, documents).tolist() == expected.tolist()
    for name, weight in run.weights.by_path().items():
        assert model.weights[name].dtype == np.int8
        np.testing.assert_array_equal(model.weights[name], weight)


def test_exports_of_version_1_are_read(tmp_path: Path) -> None:
    """They hold every table in full; a table that is not sparse is still stored like that."""
    run = tiny_run(model=SPARSE)
    directory = export_tiny_run(run, tmp_path)
    old = rewrite(directory, tmp_path / "old", lambda h, m, d: m.update(format_version=1))
    assert "direct/context_2" in old.tensors
    for name, weight in run.weights.by_path().items():
        np.testing.assert_array_equal(old.weights[name], weight)


PART_EDITS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "a row more or less": ("rows", lambda part: np.append(part[:1] ^ 1, part[1:])),
    "a count less": ("counts", lambda part: part[:-1]),
    "a longer row": ("counts", lambda part: np.append(part[:-1], part[-1] + 1).astype(part.dtype)),
    "a column less": ("columns", lambda part: part[1:]),
    "a value more": ("values", lambda part: np.append(part, part[:1])),
    "no such column": ("columns", lambda part: np.where(part == part.max(), 300, part)),
}


@pytest.mark.parametrize("name", PART_EDITS)
def test_parts_of_a_table_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    """Each with a right digest: what is wrong is how they go together."""
    part, change = PART_EDITS[name]
    directory = export_tiny_run(sparse_run(vocab_size=300), tmp_path)
    kinds = {"rows": np.uint8, "counts": np.uint16, "columns": np.uint16, "values": np.int8}

    def edit(header: dict, metadata: dict, data: bytearray) -> None:
        path = f"direct/context_4/{part}"
        begin, end = header[path]["data_offsets"]
        old = np.frombuffer(bytes(data[begin:end]), kinds[part])
        put(header, metadata, data, path, change(old).astype(kinds[part]))

    with pytest.raises(runtime.ExportError, match="the parts of direct/context_4 do not fit"):
        rewrite(directory, tmp_path / "copy", edit)


@pytest.mark.parametrize("count", [1040, 1041, 2100])
@pytest.mark.parametrize("rows", [1, 2, 300])
def test_sums_in_float32_are_exact(count: int, rows: int) -> None:
    """At the largest sum that float32 holds, beyond it, and for more rows than one call takes."""
    generator = np.random.default_rng(count)
    weight = generator.choice(np.array([-127, 126, 127], np.int8), (9, count))
    weight[0] = 127
    x = generator.choice(np.array([-127, 125, 127], np.int32), (rows, count))
    x[0] = 127
    expected = x.astype(np.int64) @ weight.T.astype(np.int64)
    for form in (weight, weight.astype(np.float32)):
        found = runtime.integer_dot(x, form)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)


def test_the_copy_in_an_export_stands_alone(directory: Path, model: runtime.Model) -> None:
    """Outside the repository, with NumPy alone, the exported runtime.py gives the same numbers."""
    program = (
        "import sys, runtime; model = runtime.load('.');"
        "print(int(runtime.log2_likelihoods(model, [b'some text'])[0]));"
        "sampler = runtime.Sampler(seed=3);"
        "print(list(runtime.generate(runtime.reader(model), b'a', sampler, tokens=9)));"
        "print(sorted({'jax', 'int_lm', 'safetensors'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-B", "-c", program],
        cwd=directory,
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    sampler = runtime.Sampler(seed=3)
    ids = list(runtime.generate(runtime.reader(model), b"a", sampler, tokens=9))
    score = int(runtime.log2_likelihoods(model, [b"some text"])[0])
    assert result.stdout.splitlines() == [str(score), str(ids), "[]"]
