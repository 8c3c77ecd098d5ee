"""Every format: an honest example, how it is damaged or forged, how it is read, what may be read.

Damage changes files. Forgery changes them and then writes the digests anew, as somebody would who
means harm: what is read may then be other than what was written, but stays within its bounds.
"""

import dataclasses
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from int_lm.errors import UserError
from int_lm.files import digest
from tests.fuzz import mutate

OUTSIDE = "outside/secret"  # beside the directory that is read; nobody may open it
TEXT = "def f(x):\n    return 'ä' * 12\n".encode()


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
      make: writes an honest example into a directory.
      read: reads it as commands do; returns what was read.
      summary: text that differs where what was read differs.
      inspect: raises AssertionError where what was read is out of bounds.
      forge: changes what it likes and makes the digests fit; None where there are none.
      links: whether a symbolic link out of the directory may be followed.
      damaged: pattern of the files that are damaged.
      spare: bytes that may be allocated beside twice the size of the files, for Python's objects.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    summary: Callable[[Any], str]
    inspect: Callable[[Any], None]
    forge: Callable[[Random, Path], None] | None
    links: bool = False
    damaged: str = "*"
    spare: int = 1 << 20


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def damage(rng: Random, directory: Path, case: Format) -> None:
    """Change one file: its bytes, an entry of its JSON, or, seldom, what kind of file it is."""
    path = rng.choice([path for path in files_of(directory) if path.match(case.damaged)])
    data = path.read_bytes()
    if rng.random() < 0.03:
        path.unlink()
        kind = rng.choice(("missing", "directory", "pipe", "loop", "link"))
        if kind == "directory":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "loop":
            path.symlink_to(path)
        elif kind == "link" and not case.links:
            outside = directory.parent / OUTSIDE
            outside.write_bytes(data)
            path.symlink_to(outside)
        return
    if path.suffix == ".yaml":
        path.write_bytes(mutate.of_yaml(rng, data))
    elif path.suffix == ".json" and rng.random() < 0.5:
        path.write_bytes(mutate.of_json(rng, json.loads(data)))
    else:
        path.write_bytes(mutate.of_bytes(rng, data))


def forge_digests(rng: Random, directory: Path) -> None:
    """Change a line of files.sha256, most often to name a file outside, and its own digest."""
    path, secret = directory / digest.FILE_DIGESTS, directory.parent
    while not (secret / OUTSIDE).exists():
        secret = secret.parent
    secret = secret / OUTSIDE
    lines = path.read_text().splitlines(keepends=True)
    *lines, last = lines
    place = rng.randrange(len(lines))
    sha256, _, name = lines[place].partition("  ")
    names = (os.path.relpath(secret, directory), str(secret), "x" * 5000, "\x00", ".", "", name * 2)
    if rng.random() < 0.7:
        sha256 = hashlib.sha256(secret.read_bytes()).hexdigest()
    lines[place] = f"{sha256}  {rng.choice((*names, *mutate.TRAVERSALS))}\n"
    text = "".join(lines)
    label = last.rpartition(" ")[0]
    path.write_text(f"{text}{label} {hashlib.sha256(text.encode()).hexdigest()}\n")


def sealed_json(rng: Random, value: dict[str, Any]) -> bytes:
    """JSON text of a value that was changed and then given the right `sha256` of its own."""
    text = mutate.of_json(rng, {key: value[key] for key in value if key != "sha256"})
    try:
        changed = json.loads(text)
        changed["sha256"] = digest.of_json(changed)
        return json.dumps(changed).encode()
    except (ValueError, TypeError, RecursionError):
        return text


def _hash(*arrays: np.ndarray) -> str:
    return "".join(digest.of_array(np.asarray(array)) for array in arrays)


# Exports


def make_export(directory: Path) -> None:
    from int_lm.config import ModelConfig
    from tests.tiny_run import export_tiny_run, tiny_run

    model = ModelConfig(architecture="rwkv", width=16, layers=2, direct=(1, 3), direct_bits=8)
    export_tiny_run(tiny_run(model=model), directory.parent)
    (directory.parent / "export").rename(directory)
    for path in files_of(directory):  # the runtime reads these two, tokenizer has its own format
        if path.name not in ("model.safetensors", "config.json"):
            path.unlink()


def read_export(directory: Path) -> Any:
    from int_lm import runtime

    return runtime.load(directory)


def summary_of_export(model: Any) -> str:
    names = sorted(model.weights)
    tables = _hash(model.exp2_table, model.log2_table)
    weights = _hash(*(model.weights[name] for name in names))
    settings = json.dumps(model.config, sort_keys=True)
    return f"{model.architecture.__name__}{names}{weights}{tables}{settings}"


def inspect_export(model: Any) -> None:
    from int_lm import runtime

    for weight in model.weights.values():
        assert weight.dtype == np.int8 and weight.min() >= -127
    V = model.config["vocab_size"]
    with np.errstate(all="ignore"):
        runtime.log2_likelihoods(model, [[V - 1, V // 2, 0, 1 % V]])
    next(runtime.generate(runtime.reader(model), [V - 1], runtime.Sampler(), tokens=1), None)


def forge_export(rng: Random, directory: Path) -> None:
    weights, settings = directory / "model.safetensors", directory / "config.json"
    data = weights.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:start]), bytearray(data[start:])
    written = json.loads(header["__metadata__"]["int_lm"])
    kind = rng.randrange(4)
    if kind == 0:
        text = mutate.of_json(rng, json.loads(settings.read_bytes()))
        settings.write_bytes(text)
        written["config_sha256"] = hashlib.sha256(text).hexdigest()
    elif kind == 1:
        name = rng.choice(sorted(written["sha256"]))
        begin, end = header[name]["data_offsets"]
        for _ in range(rng.choice((1, 1, 30))):
            body[rng.randrange(begin, end)] = rng.choice((0x80, 0x80, 0x7F, 0xFF, 0))
        written["sha256"][name] = hashlib.sha256(body[begin:end]).hexdigest()
    text = json.dumps(written).encode()
    if kind == 2:
        text = mutate.of_json(rng, written)
    header["__metadata__"]["int_lm"] = text.decode("utf-8", "replace")
    text = json.dumps(header).encode()
    if kind == 3:
        text = mutate.of_json(rng, header)
    size = len(text) if rng.random() < 0.95 else rng.choice(mutate.BINARY_NUMBERS)
    weights.write_bytes(size.to_bytes(8, "little") + text + body)


# Shards and their manifest


def make_shards(directory: Path) -> None:
    from data import make
    from int_lm.config import DataConfig, sources_of
    from tokenization import ByteTokenizer

    rng, texts = random.Random(1), directory.parent / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text("".join(rng.choices("etaoin shrdlu\n", k=700)))
    room = directory.parent / "shards"
    settings = DataConfig(
        source="text", path=(str(texts),), shards=str(room), shard_bytes=16000, holdout=0.2
    )
    [source] = sources_of(settings)
    prepared = make.prepare(settings, source, ByteTokenizer(), say=lambda _: None)
    prepared.directory.rename(directory)
    shutil.rmtree(room)
    shutil.rmtree(texts)


def read_shards(directory: Path) -> Any:
    from data import manifest
    from data.corpus import Corpus
    from int_lm.config import MixtureConfig
    from tokenization import ByteTokenizer

    source = MixtureConfig(name="text")
    return Corpus(ByteTokenizer(), [manifest.open_prepared(directory, source, ByteTokenizer())])


def summary_of_shards(corpus: Any) -> str:
    [source] = corpus.sources
    arrays = [
        _hash(shard.tokens[:], shard.windows, shard.places, shard.heldout_tokens[:], shard.heldout)
        for shard in source.shards
    ]
    return f"{arrays}{digest.of_json(source.manifest)}"


def inspect_shards(corpus: Any) -> None:
    from data import streams

    [source] = corpus.sources
    for shard in source.shards:
        assert shard.tokens.dtype == shard.heldout_tokens.dtype == np.uint8
    corpus.heldout(1000)
    try:
        read = streams.over([("text", source.shards)], corpus.tokenizer, streams=2, **LENGTHS)
    except UserError:  # too little text is left
        return
    for step in range(0, 300, 29):
        assert read.at(step).max() < corpus.tokenizer.vocab_size
        read.locate(step)


LENGTHS = {"segment_length": 16, "seed": 0}


class Harmful:
    """What a pickle would run; the audit hook of `child` sees it."""

    def __reduce__(self) -> tuple:
        return os.getcwd, ()


def forge_array(rng: Random, path: Path) -> None:
    """A .npy file of another content, dtype, shape or order, or with a header that lies."""
    array, data = np.load(path), bytearray(path.read_bytes())
    kind = rng.randrange(8)
    if kind == 0:
        path.write_bytes(mutate.of_bytes(rng, bytes(data)))
    elif kind < 3 and array.size:
        changed = array.copy().reshape(-1)
        for _ in range(rng.choice((1, 1, 5))):
            number = rng.choice((*mutate.BINARY_NUMBERS, array.size, array.size + 1))
            changed[rng.randrange(array.size)] = np.array(number % 2**64, np.uint64).astype(
                array.dtype
            )
        np.save(path, changed.reshape(array.shape))
    elif kind == 3:
        new = rng.choice(("u1", "<u2", "<i4", "<f8", ">i8", "<c16", "V3", "S2", "?", "<M8[s]"))
        np.save(path, array.view(np.uint8).reshape(-1)[: array.nbytes // 48 * 48].view(new))
    elif kind == 4:
        several = (array[:-1], array[1:], array[::-1], array[None], np.sort(array, 0), array * 0)
        np.save(path, np.asfortranarray(rng.choice((*several, np.repeat(array, 2, 0), array[:0]))))
    elif kind == 5:
        np.save(path, np.array([Harmful()], object), allow_pickle=True)
    elif kind == 6:
        with path.open("wb") as file:
            np.savez(file, tokens=array)
    else:
        shape = rng.choice(
            ("(99999999999,)", "(-1,)", "()", "(1, 1)", "(2**70,)", "(True,)", "[3]")
        )
        descr = rng.choice(("'|u1'", "'<i8'", "'|O'", "'V9999999999'", "[('a', '<i8')]", "open"))
        text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
        text = rng.choice(
            (text, b"(" * 9000, b"{" + text, b"'" + text, text.replace(b"False", b"1"))
        )
        text = text.ljust(117) + b"\n"
        size = len(text) if rng.random() < 0.8 else rng.choice((65535, 10, 0))
        path.write_bytes(b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + text + data[128:])
    if rng.random() < 0.05:  # a header of version 2, with four bytes of length
        data[6:12] = b"\x02\x00" + rng.choice(mutate.BINARY_NUMBERS[:9]).to_bytes(8, "little")[:4]
        path.write_bytes(data)


def forge_shards(rng: Random, directory: Path) -> None:
    path = directory / "manifest.json"
    manifest = json.loads(path.read_bytes())
    place = rng.randrange(len(manifest["shards"]))
    shard = directory / manifest["shards"][place]["name"]
    kind = rng.randrange(6)
    if kind < 4:
        forge_array(rng, rng.choice(sorted(shard.glob("*.npy"))))
    elif kind == 4:
        facts = shard / "shard.json"
        facts.write_bytes(mutate.of_json(rng, json.loads(facts.read_bytes())))
    if kind < 5:
        digest.seal(shard)
    else:
        forge_digests(rng, shard)
    if rng.random() < 0.3:  # counts that fit what a forged array holds
        for key, name, less in (
            ("tokens", "tokens", 0),
            ("windows", "windows", 1),
            ("heldout_documents", "heldout", 1),
            ("heldout_tokens", "heldout_tokens", 0),
        ):
            try:
                size = max(0, len(np.load(shard / f"{name}.npy")) - less)
            except Exception:  # whatever NumPy says of a forged file
                continue
            manifest["totals"][key] += size - manifest["shards"][place][key]
            manifest["shards"][place][key] = size
    sha256 = hashlib.sha256((shard / digest.FILE_DIGESTS).read_bytes()).hexdigest()
    manifest["shards"][place]["sha256"] = sha256
    del manifest["sha256"]
    path.write_text(json.dumps({**manifest, "sha256": digest.of_json(manifest)}))


def forge_manifest(rng: Random, directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_bytes(sealed_json(rng, json.loads(path.read_bytes())))


# Configurations


def make_config(directory: Path) -> None:
    from int_lm import config
    from int_lm.config import Config, DataConfig, EsConfig, MixtureConfig, ModelConfig

    directory.mkdir()
    written = Config(
        model=ModelConfig(architecture="rwkv", direct=(1, 2, 3)),
        es=EsConfig(readout="exact"),
        data=DataConfig(mixture=(MixtureConfig(source="text", path=("a", "b"), name="books"),)),
    )
    (directory / "full.yaml").write_text(config.to_yaml(written))


def read_config(directory: Path) -> Any:
    from int_lm import config
    from int_lm.method import recipe

    settings = config.validate(config.load(directory / "full.yaml"))
    recipe.check(settings)
    return settings


def summary_of_config(settings: Any) -> str:
    from int_lm import config

    return digest.of_json(config.to_dict(settings))


def inspect_config(settings: Any) -> None:
    from int_lm import config
    from int_lm.files import untrusted

    again = config.from_dict(untrusted.parse_yaml(config.to_yaml(settings)))
    assert config.validate(again) == settings


# Tokenizers


def make_tokenizer(directory: Path) -> None:
    import io

    import sentencepiece

    from tokenization import SentencePieceTokenizer

    lines = [f"w{i} x{i % 7} {i * i} def foo{i}(self): return {i}" for i in range(600)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
        num_threads=1,
    )
    SentencePieceTokenizer(model.getvalue()).save(directory)


def read_tokenizer(directory: Path) -> Any:
    import tokenization

    model = directory / "tokenizer.model"
    alone = model.is_file() and not os.path.lexists(directory / "identity.json")
    return tokenization.load(model if alone else directory)


def summary_of_tokenizer(tokenizer: Any) -> str:
    return f"{tokenizer.digest()}{tokenizer.vocab_size}{tokenizer.encode(TEXT).tolist()}"


def inspect_tokenizer(tokenizer: Any) -> None:
    for text in (TEXT, b"", b"\xff\x00", "\u2581 \U0001f600".encode(), b"a" * 2000):
        try:
            ids = tokenizer.encode(text)
        except UserError:  # a model that would change the text
            continue
        assert ids.max(initial=0) < tokenizer.vocab_size <= 1 << 16
        assert tokenizer.decode(ids) == text and tokenizer.count_bytes(ids) == len(text)


def forge_tokenizer(rng: Random, directory: Path) -> None:
    from tokenization.interface import identity_digest

    path, model = directory / "identity.json", directory / "tokenizer.model"
    identity, data = json.loads(path.read_bytes()), model.read_bytes()
    kind = rng.randrange(3)
    if kind < 2:
        data = mutate.of_bytes(rng, data)
        model.write_bytes(data)
    if kind == 0:  # brought along as a model alone
        path.unlink()
        return
    if kind == 2:
        try:
            identity = json.loads(mutate.of_json(rng, identity))
        except (ValueError, RecursionError):
            return
    if isinstance(identity, dict):
        size, separator = identity.get("vocab_size"), identity.get("separator")
        try:
            identity["digest"] = identity_digest("sentencepiece", size, separator, data)
        except ValueError:  # an integer too large to be written
            return
    path.write_text(json.dumps(identity))


# Checkpoints


def make_checkpoint(directory: Path) -> None:
    from int_lm import resume
    from int_lm.config import Config
    from int_lm.files.checkpointer import Checkpointer
    from int_lm.method import evolve, recipe
    from tests import presets
    from tokenization import ByteTokenizer
    from tokenization.interface import identity

    settings = Config(
        model=presets.egg(width=8, layers=1, ffn_multiple=1),
        es=presets.paper_es(population=4, segment_length=4, update="carry"),
    )
    host = resume.host_data(
        settings, identity(ByteTokenizer()), "0" * 64, [(0, [1.0])], 1.5, [(0, 9)]
    )
    with Checkpointer(directory / "checkpoints", keep=1) as writer:
        state = evolve.initial(recipe.of(settings, 256)).stored()
        writer.save(3, state, host, valid_bits_per_byte=5.5)


def read_checkpoint(directory: Path) -> Any:
    from int_lm import resume, run
    from int_lm.files import checkpoint

    opened = run.open_run(directory)
    resume.check_resumable(
        checkpoint.read_host(directory / "checkpoints"), opened.config, opened.tokenizer, "0" * 64
    )
    return opened


def summary_of_checkpoint(run: Any) -> str:
    from int_lm import config

    names = digest.of_json([run.step, run.tokenizer, config.to_dict(run.config)])
    return names + _hash(*run.weights.by_path().values())


def inspect_checkpoint(run: Any) -> None:
    for leaf in run.weights.by_path().values():
        assert leaf.dtype == np.int8 and leaf.min() >= -127


def forge_checkpoint(rng: Random, directory: Path) -> None:
    step = directory / "checkpoints" / "3"
    host = step / "host" / "host.json"
    kind = rng.randrange(5)
    if kind < 2:
        host.write_bytes(sealed_json(rng, json.loads(host.read_bytes())))
    elif kind < 4:
        listed = step / digest.FILE_DIGESTS
        path = rng.choice([path for path in files_of(step) if path not in (host, listed)])
        data = path.read_bytes()
        try:
            value = json.loads(data)
            data = mutate.of_json(rng, value) if rng.random() < 0.8 else mutate.of_bytes(rng, data)
        except ValueError:
            data = mutate.of_bytes(rng, data)
        path.write_bytes(data)
    if kind == 3:
        (step / digest.FILE_DIGESTS).unlink()
    elif kind == 4:
        forge_digests(rng, step)
    else:
        digest.seal(step)


FORMATS = {
    "export": Format(
        make_export, read_export, summary_of_export, inspect_export, forge_export, links=True
    ),
    "shard": Format(
        make_shards,
        read_shards,
        summary_of_shards,
        inspect_shards,
        forge_shards,
        damaged="0*/*",
    ),
    "manifest": Format(
        make_shards,
        read_shards,
        summary_of_shards,
        inspect_shards,
        forge_manifest,
        damaged="manifest.json",
    ),
    "config": Format(
        make_config,
        read_config,
        summary_of_config,
        inspect_config,
        None,
        links=True,
        spare=8 << 20,  # a YAML value of two bytes takes 600; untrusted allows 10 000 of them
    ),
    "tokenizer": Format(
        make_tokenizer,
        read_tokenizer,
        summary_of_tokenizer,
        inspect_tokenizer,
        forge_tokenizer,
        links=True,
    ),
    "checkpoint": Format(
        make_checkpoint,
        read_checkpoint,
        summary_of_checkpoint,
        inspect_checkpoint,
        forge_checkpoint,
    ),
}
