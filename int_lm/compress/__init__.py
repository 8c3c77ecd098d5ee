"""Lossless compression by an exported model: its integer probabilities code a text, exactly.

The same export reads an archive on every machine, for the probabilities are the same bits
everywhere. docs/archive.md describes the format to the byte. Any bytes can be compressed: a block
that the model would make larger is stored as it is.

Axes: P lanes (parts of a block that are coded side by side), T tokens of a lane, V vocabulary.
"""

import dataclasses
import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from int_lm.compress import coder
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
LANE_TOKENS = 512  # a lane has at least so many tokens, where lanes are not given

Progress = Callable[[int], None]  # told every number of tokens just coded
Encode = Callable[[bytes], np.ndarray]
Decode = Callable[[list[int]], bytes]


@dataclasses.dataclass(frozen=True)
class Codec:
    """A model with its tokenizer.

    Attributes:
      encode: bytes to ids, decode: ids to bytes. What does not come back is stored.
    """

    model: Model
    encode: Encode
    decode: Decode

    @property
    def vocabulary(self) -> int:
        return self.model.config["vocab_size"]

    @property
    def name(self) -> bytes:
        """The hash of the weights, 16 bytes of ASCII; errors `UserError`."""
        name = self.model.config.get("weights_hash")
        if not (isinstance(name, str) and name.isascii() and len(name) == 16):
            raise UserError("the export's config.json has no hash of its weights; export it again")
        return name.encode()

    def header(self) -> bytes:
        """The first bytes of every archive of this model."""
        name = self.name
        head = HEADER.pack(MAGIC, VERSION, 0, 0, self.vocabulary, name, 0)[: -CRC.size]
        return head + CRC.pack(zlib.crc32(head))


def lane_lengths(tokens: int, lanes: int) -> np.ndarray:
    """Tokens of every lane, int64 [P]: the first ones have one more where they are not equal."""
    return np.array([(tokens + lanes - 1 - lane) // lanes for lane in range(lanes)], np.int64)


def _steps(lengths_P: np.ndarray) -> Iterator[int]:
    """For every token of the longest lane, how many lanes have one: the first ones."""
    for t in range(int(lengths_P[0])):
        yield len(lengths_P) if t < lengths_P[-1] else int((lengths_P > t).sum())


def _logits(codec: Codec, lengths_P: np.ndarray) -> Iterator[np.ndarray]:
    """Logits [P, V] of the next token of every lane; is sent each lane's token, [P]."""
    state, tokens_P = codec.model.initial_state(len(lengths_P)), np.full(len(lengths_P), SEPARATOR)
    for active in _steps(lengths_P):
        state = {name: leaf[:, :active] for name, leaf in state.items()}
        state, logits_PV = codec.model.step(state, tokens_P[:active])
        tokens_P = yield logits_PV


def encode_block(codec: Codec, ids: np.ndarray, lanes: int, progress: Progress) -> bytes:
    """The payload of a coded block: states of the lanes, then words."""
    lengths_P = lane_lengths(len(ids), lanes)
    begins_P = lengths_P.cumsum() - lengths_P
    predictions, tokens_P, found = _logits(codec, lengths_P), None, []
    for t, active in enumerate(_steps(lengths_P)):
        logits_PV = predictions.send(tokens_P)  # type: ignore[arg-type]
        tokens_P = ids[begins_P[:active] + t].astype(np.int64)
        frequencies_PV = coder.frequencies(codec.model.exp2_table, logits_PV)
        found.append(coder.intervals(frequencies_PV, tokens_P))
        progress(active)
    encoder = coder.Encoder(lanes)
    for starts_P, frequencies_P in reversed(found):
        encoder.put(starts_P, frequencies_P)
    return encoder.states_P.astype("<u8").tobytes() + encoder.words().astype("<u4").tobytes()


def decode_block(
    codec: Codec, payload: bytes, tokens: int, lanes: int, progress: Progress
) -> np.ndarray:
    """The ids, int64 [tokens], of a coded block; errors `coder.DamagedStreamError`."""
    states_P = np.frombuffer(payload[: 8 * lanes], "<u8").astype(np.uint64)
    decoder = coder.Decoder(states_P, np.frombuffer(payload[8 * lanes :], "<u4"))
    lengths_P, ids = lane_lengths(tokens, lanes), np.zeros(tokens, np.int64)
    begins_P = lengths_P.cumsum() - lengths_P
    predictions, tokens_P = _logits(codec, lengths_P), None
    for t, active in enumerate(_steps(lengths_P)):
        logits_PV = predictions.send(tokens_P)  # type: ignore[arg-type]
        tokens_P = decoder.take(coder.frequencies(codec.model.exp2_table, logits_PV))
        ids[begins_P[:active] + t] = tokens_P
        progress(active)
    decoder.finish()
    return ids


def _pieces(source: BinaryIO, whole: bool) -> Iterator[bytes]:
    """Text in pieces of at most `BLOCK_BYTES`; unless `whole`, they end with a line if they can."""
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
    progress: Progress = lambda tokens: None,
) -> None:
    """Write the archive of all that `source` holds.

    Args:
      source: is read block by block. target: is written front to back.
      lanes: parts of a block that are coded side by side, 1 to `LANES_MAX`; 0 chooses by its size.
    """
    target.write(codec.header())
    digest, length = hashlib.sha256(), 0
    for text in _pieces(source, codec.model.config["tokenizer"]["kind"] == "bytes"):
        digest.update(text)
        length += len(text)
        target.write(_block(codec, text, lanes, progress))
    end = BLOCK.pack(END_KIND, 0, 0, 0, END.size) + END.pack(length, digest.digest())
    target.write(end + CRC.pack(zlib.crc32(end)))


def _block(codec: Codec, text: bytes, lanes: int, progress: Progress) -> bytes:
    """A block, with its CRC-32: coded, or stored where that is not larger."""
    try:
        ids = np.asarray(codec.encode(text))
        lossless = codec.decode(ids.tolist()) == text
    except (UserError, ValueError):  # no text for this tokenizer
        ids, lossless = np.zeros(0, np.int64), False
    block = BLOCK.pack(STORED_KIND, len(text), 0, 0, len(text)) + text
    if lossless:
        count = min(lanes, len(ids)) or min(LANES, max(1, len(ids) // LANE_TOKENS))
        payload = encode_block(codec, ids, count, progress)
        if len(payload) < len(text):
            block = BLOCK.pack(CODED_KIND, len(text), len(ids), count, len(payload)) + payload
    return block + CRC.pack(zlib.crc32(block))


class ArchiveError(UserError):
    """The archive cannot be read: one sentence that says why, and what to do next."""


def decompress(
    codec: Codec, source: BinaryIO, target: BinaryIO, *, progress: Progress = lambda tokens: None
) -> None:
    """Write the text of an archive, block by block.

    Raises:
      ArchiveError: `source` is no archive, of another version or model, damaged or cut short. What
        was written until then must not be taken for the text.
    """
    check_header(codec, source.read(HEADER.size))
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
        text = payload if kind == STORED_KIND else _text(codec, payload, tokens, lanes, progress)
        _require(len(text) == size, "a block has not the length that it says")
        digest.update(text)
        length += size
        target.write(text)
    same = (length, digest.digest()) == END.unpack(payload)
    _require(same, "the text differs from its SHA-256")
    _require(not source.read(1), "bytes follow its end")


def check_header(codec: Codec, head: bytes) -> None:
    """Refuse, with an `ArchiveError`, an archive that this model has not written."""
    if len(head) < HEADER.size or head[:8] != MAGIC:
        raise ArchiveError("it is no archive of int_lm; name a file that int_lm.compress wrote")
    _, version, flags, zero, vocabulary, name, written = HEADER.unpack(head)
    if version != VERSION or flags:
        raise ArchiveError(
            f"the archive has version {version} and flags {flags}, this program reads version "
            f"{VERSION} and flags 0; use a newer int_lm"
        )
    _require(zlib.crc32(head[: -CRC.size]) == written and not zero, "its header is damaged")
    if name != codec.name or vocabulary != codec.vocabulary:
        raise ArchiveError(
            f"the archive was written with the weights {name.decode('ascii', 'replace')}, this "
            f"export has {codec.name.decode()}; use the export that compressed it (--export)"
        )


def _text(codec: Codec, payload: bytes, tokens: int, lanes: int, progress: Progress) -> bytes:
    try:
        return codec.decode(decode_block(codec, payload, tokens, lanes, progress).tolist())
    except (coder.DamagedStreamError, ValueError) as error:
        raise _damaged("a block cannot be decoded") from error


def _possible(kind: int, size: int, tokens: int, lanes: int, most: int) -> bool:
    """Whether the numbers of a block's head can be those of a block."""
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
