"""Large vocabularies, mixtures and tasks: everything after the tokenizer, at sizes that hurt."""

import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from data import tasks
from int_lm import config, runtime
from int_lm.config import Config, EsConfig, ModelConfig
from int_lm.errors import UserError
from int_lm.files import checkpoint, lock
from int_lm.measure import evaluate
from int_lm.measure.code_length import CodeLengths
from int_lm.method import evolve, recipe
from tests.tiny_command import assert_same_run, rows, wait_for_rows
from tests.tiny_run import export_tiny_run, tiny_run
from tokenization import ByteTokenizer, train

ROOT = Path(__file__).resolve().parent.parent
LARGE = 32_768
MODEL = ModelConfig(architecture="rwkv", width=16, layers=1, direct=(1, 2), direct_bits=8)
ES = EsConfig(population=8, segment_length=4, votes="unit", readout="exact", update="carry")


def words_of(count: int, seed: int) -> list[str]:
    """Texts of a small language in which the last word of a text is often its first."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("abdegiklmnoprstu", k=4)) for _ in range(60)]
    texts = []
    for _ in range(count):
        picked = generator.choices(words, k=generator.randint(5, 60))
        texts.append(" ".join([*picked, picked[0]]))
    return texts


# Large vocabularies


@pytest.mark.parametrize(
    "votes",
    ["unit", *(pytest.param(votes, marks=pytest.mark.slow) for votes in ("trace", "eggroll"))],
)
@pytest.mark.slow
def test_a_step_at_32768_is_the_same_in_chunks(votes: str) -> None:
    """Likelihood, embeddings, readout and direct votes: chunks change no bit, and int32 holds."""
    tokens = np.random.default_rng(0).integers(0, LARGE, (4, 5)).astype(np.uint16)
    results = []
    for chunk in (0, 4):
        es = EsConfig(**{**vars(ES), "votes": votes, "chunk": chunk})
        settings = config.validate(Config(model=MODEL, es=es))
        of_settings = recipe.of(settings, LARGE)
        state = evolve.initial(of_settings)
        step = evolve.compiled_step(of_settings)
        for number in range(2):
            state, measured = step(state, tokens, number)
        results.append(jax.tree.map(np.asarray, (state, measured)))
    for first, second in zip(*map(jax.tree.leaves, results), strict=True):
        assert first.dtype == second.dtype and (first == second).all()


@pytest.mark.parametrize("vocab_size", [LARGE, pytest.param(65_536, marks=pytest.mark.slow)])
def test_evaluation_at_large_vocabularies(vocab_size: int, tmp_path: Path) -> None:
    """JAX and the NumPy runtime agree bit for bit, and bits per token are what they must be."""
    run = tiny_run(vocab_size, MODEL)
    generator = np.random.default_rng(3)
    documents = [generator.integers(1, vocab_size, n).astype(np.uint16) for n in (1, 300, 17)]
    found = evaluate.log2_likelihoods(run.recipe.model, run.weights, documents)
    model = runtime.load(export_tiny_run(run, tmp_path))
    assert found.tolist() == runtime.log2_likelihoods(model, documents).tolist()
    assert (found < 0).all() and (found > -32 * 65536 * 301).all()


# Bits per byte of a known model


def test_bits_per_byte_of_a_known_model() -> None:
    """Fixed probabilities, by hand: bytes and pieces, with the leading space and the separator.

    A uniform model over V = 2^k tokens gives k bits for every token, the separator included; bits
    per byte divide by the bytes of the raw text.
    """
    texts = [b" leading space", "naïve café".encode(), b"x"]
    pieces = train.train([" ".join(words_of(200, 0)).encode()], vocab_size=512, model_type="bpe")
    for tokenizer in (ByteTokenizer(), pieces):
        model = ModelConfig(width=8, layers=1)
        of_model = recipe.of(Config(model=model), tokenizer.vocab_size)
        uniform = jax.tree.map(np.zeros_like, evolve.initial(of_model).weights)
        ids = tokenizer.encode_all(texts)
        lengths = evaluate.evaluate(of_model.model, uniform, ids, [len(text) for text in texts])
        tokens = sum(len(document) + 1 for document in ids)
        expected = tokens * math.log2(tokenizer.vocab_size) / sum(map(len, texts))
        assert lengths.bits_per_byte == expected
        assert isinstance(lengths, CodeLengths) and lengths.of([2]).text_bytes.tolist() == [1]
        assert sum(len(tokenizer.decode(document)) for document in ids) == sum(map(len, texts))


# Tasks


def test_greedy_hits_are_those_of_greedy_reading(tmp_path: Path) -> None:
    """Of the tokens from a place on, as many as reading one by one finds; JAX and NumPy agree."""
    run = tiny_run(256, MODEL)
    model = runtime.load(export_tiny_run(run, tmp_path))
    generator = np.random.default_rng(1)
    documents = [generator.integers(1, 256, n).astype(np.uint8) for n in (40, 3, 300, 9)]
    for index, document in enumerate(documents):  # let some of them be what the model would write
        read = runtime.reader(model)
        token = 0
        for place in range(len(document)):
            likeliest = int(read(token).argmax())
            if place % 3 != index % 3 and likeliest != 0:
                document[place] = likeliest
            token = int(document[place])
    firsts = [10, 0, 299, 9]
    expected = []
    for document, first in zip(documents, firsts, strict=True):
        read = runtime.reader(model)
        hits = [int(read(t).argmax()) == u for t, u in zip([0, *document], document, strict=False)]
        expected.append(sum(hits[first:]))
    by_numpy = runtime.log2_likelihoods(model, documents, metric=runtime.greedy_hit, firsts=firsts)
    by_jax = evaluate.log2_likelihoods(
        run.recipe.model, run.weights, documents, metric=evaluate.greedy_hit, firsts=firsts
    )
    assert by_numpy.tolist() == by_jax.tolist() == expected
    assert expected[0] > 5 and expected[3] == 0


def test_tasks_are_read_from_json_lines(tmp_path: Path) -> None:
    """Last words with their space, pairs side by side, and mistakes in one sentence."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "she said no"}\n{"text": "word"}\n{"text": "a bé\\n"}\n')
    documents, firsts = tasks.last_words(str(path), ByteTokenizer())
    assert [bytes(ids).decode() for ids in documents] == ["she said no", "a bé"]
    assert firsts == [8, 1]
    with pytest.raises(UserError, match="no field 'sentence_good'"):
        tasks.pairs(str(path), ByteTokenizer())
    path.write_text(
        '{"sentence_good": "a", "sentence_bad": "b"}\n{"sentence_good": "c", "sentence_bad": ""}\n'
        '{"sentence_good": "d", "sentence_bad": "e"}\n'
    )
    assert b"".join(map(bytes, tasks.pairs(str(path), ByteTokenizer()))) == b"abde"
    path.write_text('{"text": "word"}\n')
    with pytest.raises(UserError, match="holds no text of two words"):
        tasks.last_words(str(path), ByteTokenizer())


# A run on a mixture, with pieces


def write_json(path: Path, values: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer, a configuration of two sources, and two tasks."""
    root = tmp_path_factory.mktemp("mixture")
    for name, seed in (("first", 1), ("second", 2)):
        write_json(root / f"{name}.jsonl", [{"text": text} for text in words_of(30, seed)])
    text = " ".join(words_of(300, 1)).encode()
    train.train([text], vocab_size=600, model_type="bpe").save(root / "pieces")
    mixture = "".join(
        f"  - {{name: {name}, source: json, path: {root / name}.jsonl, weight: {weight}}}\n"
        for name, weight in (("first", 3), ("second", 1))
    )
    (root / "mixture.yaml").write_text(
        "model: {architecture: rwkv, width: 16, layers: 1, direct: [1, 2], direct_bits: 8}\n"
        "es: {population: 16, segment_length: 8, votes: unit, readout: exact, update: carry,\n"
        "     sigma_shift: 4, schedule: inverse}\n"
        f"data:\n  tokenizer: {root / 'pieces'}\n  shards: {root / 'shards'}\n"
        f"  shard_bytes: 10000\n  mixture:\n{mixture}"
        "run: {steps: 150, log_every: 10, eval_every: 50, checkpoint_every: 20, eval_bytes: 3000,\n"
        "      sample_tokens: 5, keep: 50}\n"
    )
    write_json(root / "last.jsonl", [{"text": text} for text in words_of(20, 1)])
    good, bad = words_of(20, 1), words_of(20, 7)
    write_json(
        root / "pairs.jsonl",
        [{"sentence_good": a, "sentence_bad": b} for a, b in zip(good, bad, strict=True)],
    )
    return root


@pytest.mark.slow
def test_a_mixture_in_pieces_is_trained_and_used(prepared: Path, run_command) -> None:
    """Train, evaluate by source, sample, export: the same figures and text from JAX and NumPy."""
    run, export = prepared / "run", prepared / "export"
    done = run_command("train.py", "--config", prepared / "mixture.yaml", "--run.dir", run)
    assert done.returncode == 0, done.stderr
    assert "bits per byte by source" in done.stdout
    last = rows(run)[-1]
    assert abs(last["shares"]["first"] - 0.75) < 0.15
    assert last["train_bits_per_byte"] < 0.8 * rows(run)[0]["train_bits_per_byte"]
    done = run_command("-m", "int_lm.export", "--run", run, "--out", export)
    assert done.returncode == 0, done.stderr
    answers = []
    for place in (["--run", run], ["--export", export]):
        found = run_command("eval.py", *place, "--json", "--word_perplexity")
        assert found.returncode == 0, found.stderr
        figures = json.loads(found.stdout)
        assert sorted(figures["sources"]) == ["first", "second"]
        assert figures["bytes"] == sum(s["bytes"] for s in figures["sources"].values())
        assert figures["word_perplexity"] > 1
        task = run_command(
            "eval.py", *place, "--json", "--last_word", prepared / "last.jsonl",
            "--pairs", prepared / "pairs.jsonl",
        )  # fmt: skip
        assert task.returncode == 0, task.stderr
        tasks = json.loads(task.stdout)
        assert tasks["examples"] == tasks["pairs"] == 20 and tasks["pair_accuracy"] > 0.5
        written = run_command("-m", "int_lm.sample", *place, "--prompt", "na", "--tokens", "30")
        assert written.returncode == 0, written.stderr
        del figures["model"], tasks["model"]
        answers.append((figures, tasks, written.stdout))
    assert answers[0] == answers[1]
    refused = run_command(
        "train.py", "--config", prepared / "mixture.yaml", "--run.dir", run,
        "--data.tokenizer", "bytes",
    )  # fmt: skip
    assert refused.returncode == 2 and "tokenizer" in refused.stderr


def shards_in(directory: Path) -> dict[str, bytes]:
    """The files of shards by their names, but for locks, which those who were killed leave."""
    files = (path for path in sorted(directory.rglob("*")) if path.name != lock.FILE)
    return {str(path.relative_to(directory)): path.read_bytes() for path in files if path.is_file()}


def names_in(directory: Path) -> int:
    """How many files and directories lie in it, also while another process removes some."""
    return sum(len(names) + len(files) for _, names, files in os.walk(directory))


@pytest.mark.slow
@pytest.mark.alone
def test_kills_and_new_weights_change_no_order(
    prepared: Path, command_environment: dict[str, str], run_command
) -> None:
    """Killed again and again while it prepares two sources, and twelve times at random inside the
    mixture, across epochs, a run comes to the same shards, weights, states and log; other weights
    of the mixture hold from the next round on, and what was read stays read."""
    whole, killed = prepared / "whole", prepared / "killed"
    own = [("--data.shards", prepared / f"{run.name}_shards") for run in (whole, killed)]
    command = ["--config", prepared / "mixture.yaml", "--data.shard_bytes", "1000"]
    assert run_command("train.py", *command, *own[0], "--run.dir", whole).returncode == 0
    shards = own[1][1]

    def start() -> subprocess.Popen[bytes]:
        arguments = map(str, [*command, *own[1], "--run.dir", killed])
        return subprocess.Popen(
            [sys.executable, ROOT / "train.py", *arguments],
            env=command_environment,
            stdout=subprocess.DEVNULL,
        )

    preparing = 0
    while len(list(shards.glob("*/manifest.json"))) < 2 and preparing < 8:
        before = names_in(shards)
        with start() as process:  # to the moment that one name more is there
            while process.poll() is None and names_in(shards) <= before:
                time.sleep(0.0005)
            process.kill()
        preparing += 1
    assert preparing > 3
    generator, kills = random.Random(3), 12
    for number in range(kills):
        with start() as process:
            if generator.random() < 0.3:  # while it imports, reads text or compiles
                time.sleep(generator.uniform(0.5, 4))
            else:
                wait_for_rows(killed, 1 + number * 15 // kills, process)
                time.sleep(generator.uniform(0, 0.3))
            process.kill()
    ended = run_command("train.py", *command, *own[1], "--run.dir", killed)
    assert ended.returncode in (0, 4)  # 4: it was done
    assert shards_in(own[1][1]) == shards_in(own[0][1])
    assert_same_run(killed, whole)
    hosts = [checkpoint.read_host(run / "checkpoints") for run in (whole, killed)]
    assert hosts[0]["mixture"] == hosts[1]["mixture"] == [[0, [3.0, 1.0]]]
    text = (prepared / "mixture.yaml").read_text().replace("weight: 3", "weight: 1")
    (prepared / "other.yaml").write_text(text)
    command[1] = prepared / "other.yaml"
    done = run_command("train.py", *command, *own[0], "--run.dir", whole, "--run.steps", "400")
    assert done.returncode == 0, done.stderr
    phases = checkpoint.read_host(whole / "checkpoints")["mixture"]
    assert len(phases) == 2 and phases[1][1] == [1.0, 1.0] and phases[1][0] > 0
    assert rows(whole)[-1]["shares"]["first"] < 0.72
    done = run_command("-m", "int_lm.verify", whole)  # from before the weights changed
    assert done.returncode == 0, done.stdout
