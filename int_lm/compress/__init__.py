"""Lossless compression with an exported model: its integer probabilities code the tokens.

The same export can read an archive on every machine, because the probabilities are the same bits
everywhere. docs/archive.md describes the format to the byte. Any bytes can be compressed: a block
that the model would make larger is stored as it is.

Axes: P lanes (parts of a block that are coded side by side), T tokens of a lane, V vocabulary.
"""

import dataclasses
import hashlib
import struct
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO

import numpy as np

from int_lm.compress import coder
from int_lm.compress.learn import Learner
from int_lm.errors import UserError
from int_lm.runtime import SEPARATOR, Model

MAGIC, VERSION = b"\x89INTLM\r\n", 1
HEADER = struct.Struct("<8sBBHI16sI")  # magic, version, flags, 0, V, hash of weights, CRC-32
BLOCK = struct.Struct("<B3xIIII")  # kind, bytes of text, tokens, lanes, bytes of payload
END = struct.Struct("<Q32s")  # bytes of the whole text, its SHA-256
CRC = struct.Struct("<I")
END_KIND, CODED_KIND, STORED_KIND = 0, 1, 2
BLOCK_BYTES = 1 << 20  # of text in a block, at most
LANES_MAX = 1024
LANES = 128  # of a whole block, by default
LEARNING_LANES = 16  # by default with learning; with more lanes, each learns later
LEARNS = 1  # flag: context tables and matches learn
LANE_TOKENS = 512  # least tokens of a lane, if the number of lanes is not given

Progress = Callable[[int], None]  # called with the number of tokens just coded
Encode = Callable[[bytes], np.ndarray]
Decode = Callable[[list[int]], bytes]


@dataclasses.dataclass(frozen=True)
class Codec:
    """A model with its tokenizer.

    Attributes:
      model: of an export.
      encode: turns bytes into ids.
      decode: turns ids into bytes. A block for which `decode(encode(block))` differs is stored.
    """

    model: Model
    encode: Encode
    decode: Decode

    @property
    def vocabulary(self) -> int:
        """V, the size of the vocabulary."""
        return self.model.config["vocab_size"]

    @property
    def name(self) -> bytes:
        """The hash of the weights, 16 bytes of ASCII.

        Raises:
          UserError: config.json has no hash.
        """
        name = self.model.config.get("weights_hash")
        if not (isinstance(name, str) and name.isascii() and len(name) == 16):
            raise UserError("the export's config.json has no hash of its weights; export it again")
        return name.encode()

    def header(self, flags: int) -> bytes:
        """The header of an archive of this model: `HEADER.size` bytes."""
        name = self.name
        head = HEADER.pack(MAGIC, VERSION, flags, 0, self.vocabulary, name, 0)[: -CRC.size]
        return head + CRC.pack(zlib.crc32(head))


def lane_lengths(tokens: int, lanes: int) -> np.ndarray:
    """Number of tokens of every lane, int64 [P]; the first lanes may have one token more."""
    return np.array([(tokens + lanes - 1 - lane) // lanes for lane in range(lanes)], np.int64)


def _steps(lengths_P: np.ndarray) -> Iterator[int]:
    """For t = 0, 1, ...: the number of lanes that have a token t. They are the first lanes."""
    for t in range(int(lengths_P[0])):
        yield len(lengths_P) if t < lengths_P[-1] else int((lengths_P > t).sum())


def _frequencies(
    codec: Codec, learner: Learner | None, lengths_P: np.ndarray
) -> Generator[np.ndarray, np.ndarray | None, None]:
    """Yield frequencies [P, V] of the next token of every lane; receive these tokens, [P]."""
    state, tokens_P = codec.model.initial_state(len(lengths_P)), np.full(len(lengths_P), SEPARATOR)
    if learner:
        learner.begin(len(lengths_P))
    for active in _steps(lengths_P):
        state = {name: leaf[:, :active] for name, leaf in state.items()}
        state, logits_PV = codec.model.step(state, tokens_P[:active], owned=True)
        logits_PV = learner.logits(state, tokens_P[:active], logits_PV) if learner else logits_PV
        frequencies_PV = coder.frequencies(codec.model.exp2_table, logits_PV)
        found_P = yield frequencies_PV
        assert found_P is not None
        tokens_P = found_P
        if learner:
            learner.learn(frequencies_PV, tokens_P)


def encode_block(
    codec: Codec, learner: Learner | None, ids: np.ndarray, lanes: int, progress: Progress
) -> bytes:
    """The payload of a coded block: the states of the lanes, then the words."""
    lengths_P = lane_lengths(len(ids), lanes)
    begins_P = lengths_P.cumsum() - lengths_P
    predictions, tokens_P, found = _frequencies(codec, learner, lengths_P), None, []
    for t, active in enumerate(_steps(lengths_P)):
        frequencies_PV = predictions.send(tokens_P)
        tokens_P = ids[begins_P[:active] + t].astype(np.int64)
        found.append(coder.intervals(frequencies_PV, tokens_P))
        progress(active)
    encoder = coder.Encoder(lanes)
    for starts_P, frequencies_P in reversed(found):
        encoder.put(starts_P, frequencies_P)
    return encoder.states_P.astype("<u8").tobytes() + encoder.words().astype("<u4").tobytes()


def decode_block(
    codec: Codec,
    learner: Learner | None,
    payload: bytes,
    tokens: int,
    lanes: int,
    progress: Progress,
) -> np.ndarray:
    """The ids of a coded block: int64 [tokens].

    Raises:
      coder.DamagedStreamError: the payload is damaged.
    """
    states_P = np.frombuffer(payload[: 8 * lanes], "<u8").astype(np.uint64)
    decoder = coder.Decoder(states_P, np.frombuffer(payload[8 * lanes :], "<u4"))
    lengths_P, ids = lane_lengths(tokens, lanes), np.zeros(tokens, np.int64)
    begins_P = lengths_P.cumsum() - lengths_P
    predictions, tokens_P = _frequencies(codec, learner, lengths_P), None
    for t, active in enumerate(_steps(lengths_P)):
        tokens_P = decoder.take(predictions.send(tokens_P))
        ids[begins_P[:active] + t] = tokens_P
        progress(active)
    decoder.finish()
    return ids


def _pieces(source: BinaryIO, whole: bool) -> Iterator[bytes]:
    """The text in pieces of at most `BLOCK_BYTES`.

    Args:
      whole: whether pieces may end anywhere; otherwise they end at the end of a line if possible.
    """
    kept = b""
    while piece := kept + source.read(BLOCK_BYTES - len(kept)):
        cut = len(piece) if whole or len(piece) < BLOCK_BYTES else piece.rfind(b"\n") + 1
        cut = cut or len(piece)
        yield piece[:cut]
        kept = piece[cut:]


def compress(
    codec: Codec,
    source: BinaryIO,
    target: BinaryIO,
    *,
    lanes: int = 0,
    learn: bool = False,
    progress: Progress = lambda tokens: None,
) -> None:
    """Compress the content of `source`.

    Args:
      codec: the model and its tokenizer.
      source: file to read, block by block.
      target: file to write, from its beginning to its end.
      lanes: parts of a block that are coded side by side, 1 to `LANES_MAX`; 0 chooses the number
        by the size of the block.
      learn: whether it learns from what it reads (`learn`). This is slower; archives of text
        that resembles its own beginning become smaller.
      progress: called with the number of tokens just coded.

    Raises:
      UserError: `learn` is True and the model has no context tables.
    """
    learner = Learner(codec.model) if learn else None
    target.write(codec.header(LEARNS if learn else 0))
    digest, length = hashlib.sha256(), 0
    for text in _pieces(source, codec.model.config["tokenizer"]["kind"] == "bytes"):
        digest.update(text)
        length += len(text)
        target.write(_block(codec, learner, text, lanes, progress))
    end = BLOCK.pack(END_KIND, 0, 0, 0, END.size) + END.pack(length, digest.digest())
    target.write(end + CRC.pack(zlib.crc32(end)))


def _block(
    codec: Codec, learner: Learner | None, text: bytes, lanes: int, progress: Progress
) -> bytes:
    """A block with its CRC-32: coded, or stored if coding does not make it smaller."""
    try:
        ids = np.asarray(codec.encode(text))
        lossless = codec.decode(ids.tolist()) == text
    except (UserError, ValueError):  # the tokenizer cannot encode it
        ids, lossless = np.zeros(0, np.int64), False
    block = BLOCK.pack(STORED_KIND, len(text), 0, 0, len(text)) + text
    if lossless:
        most = LEARNING_LANES if learner else LANES
        count = min(lanes, len(ids)) or min(most, max(1, len(ids) // LANE_TOKENS))
        payload = encode_block(codec, learner, ids, count, progress)
        if len(payload) < len(text):
            block = BLOCK.pack(CODED_KIND, len(text), len(ids), count, len(payload)) + payload
    if learner and block[0] == STORED_KIND:
        learner.reset()
    return block + CRC.pack(zlib.crc32(block))


class ArchiveError(UserError):
    """The archive cannot be read: one sentence that says why, and what to do next."""


def decompress(
    codec: Codec, source: BinaryIO, target: BinaryIO, *, progress: Progress = lambda tokens: None
) -> None:
    """Write the text of an archive, block by block.

    Args:
      codec: the model that wrote the archive, and its tokenizer.
      source: the archive.
      target: file to write.
      progress: called with the number of tokens just decoded.

    Raises:
      ArchiveError: `source` is not an archive, is of another version or model, or is damaged or
        incomplete. Then `target` does not hold the text, and must not be used.
    """
    flags = check_header(codec, source.read(HEADER.size))
    learner = Learner(codec.model) if flags & LEARNS else None
    digest, length = hashlib.sha256(), 0
    while True:
        head = _exactly(source, BLOCK.size)
        kind, size, tokens, lanes, most = BLOCK.unpack(head)
        sound = _possible(kind, size, tokens, lanes, most)
        _require(sound and head[1:4] == bytes(3), "a block of it is impossible")
        payload = _exactly(source, most)
        (written,) = CRC.unpack(_exactly(source, CRC.size))
        _require(zlib.crc32(head + payload) == written, "a block differs from its CRC-32")
        if kind == END_KIND:
            break
        if kind == STORED_KIND:
            text = payload
            if learner:
                learner.reset()
        else:
            text = _text(codec, learner, payload, tokens, lanes, progress)
        _require(len(text) == size, "a block has not the length that it says")
        digest.update(text)
        length += size
        target.write(text)
    same = (length, digest.digest()) == END.unpack(payload)
    _require(same, "the text differs from its SHA-256")
    _require(not source.read(1), "bytes follow its end")


def check_header(codec: Codec, head: bytes) -> int:
    """The flags of an archive.

    Args:
      codec: the model.
      head: the first `HEADER.size` bytes of the archive.

    Raises:
      ArchiveError: this is not an archive, or it is damaged or of another version or model.
    """
    if len(head) < HEADER.size or head[:8] != MAGIC:
        raise ArchiveError("it is no archive of int_lm; name a file that int_lm.compress wrote")
    _, version, flags, zero, vocabulary, name, written = HEADER.unpack(head)
    if version != VERSION or flags & ~LEARNS:
        raise ArchiveError(
            f"the archive has version {version} and flags {flags}, this program reads version "
            f"{VERSION} and flags 0 and {LEARNS}; use a newer int_lm"
        )
    _require(zlib.crc32(head[: -CRC.size]) == written and not zero, "its header is damaged")
    if name != codec.name or vocabulary != codec.vocabulary:
        raise ArchiveError(
            f"the archive was written with the weights {name.decode('ascii', 'replace')}, this "
            f"export has {codec.name.decode()}; use the export that compressed it (--export)"
        )
    return flags


def _text(codec: Codec, learner: Learner | None, payload: bytes, *block: Any) -> bytes:
    try:
        return codec.decode(decode_block(codec, learner, payload, *block).tolist())
    except (coder.DamagedStreamError, ValueError) as error:
        raise _damaged("a block cannot be decoded") from error


def _possible(kind: int, size: int, tokens: int, lanes: int, most: int) -> bool:
    """Whether the numbers in the head of a block are possible."""
    if kind == CODED_KIND:
        sound = 0 < size <= BLOCK_BYTES and 0 < tokens <= 2 * BLOCK_BYTES
        sound = sound and 0 < lanes <= min(tokens, LANES_MAX) and most % 4 == 0
        return sound and 8 * lanes <= most < size
    whole = size if kind == STORED_KIND else END.size
    limit = 0 < size <= BLOCK_BYTES if kind == STORED_KIND else kind == END_KIND and size == 0
    return limit and (tokens, lanes, most) == (0, 0, whole)


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    _require(len(data) == size, "it was cut short")
    return data


def _damaged(problem: str) -> ArchiveError:
    return ArchiveError(f"the archive is damaged: {problem}; get it again from where it came from")


def _require(condition: Any, problem: str) -> None:
    if not condition:
        raise _damaged(problem)
