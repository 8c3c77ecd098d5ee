"""The held-out split: by document, chosen by the document's own bytes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from data.documents import Document
from data.text import cut
from int_lm.errors import UserError

HASH_BITS = 64


@dataclass(frozen=True)
class Split:
    """Documents to train on and documents held out, each in the order given to `split`."""

    train: tuple[Document, ...]
    heldout: tuple[Document, ...]


def split(documents: Sequence[Document], holdout: float) -> Split:
    """Hold out about the share `holdout` of the documents; no text is ever on both sides.

    A document is held out when the hash of its text, as a fraction of 1, is below `holdout`. So
    its side depends on its own bytes alone: not on its name, its place or the other documents.
    If this leaves no held-out document, the text with the smallest hash is held out; if it leaves
    no training document, the text with the largest hash is trained on.

    Args:
      documents: at least two different texts.
      holdout: share of the documents held out, 0 < holdout < 1; a larger one holds out a superset.

    Raises:
      UserError: fewer than two different texts.
    """
    hashes = [hash_of(document.text) for document in documents]
    smallest, largest = min(hashes, default=0), max(hashes, default=0)
    if smallest == largest:
        raise UserError(
            "holding text out needs at least 2 different documents, this text makes "
            f"{min(1, len(documents))}; give more text or lower --data.document_bytes"
        )
    # The limits that leave neither side empty are those above `smallest` and up to `largest`.
    limit = min(max(int(holdout * 2**HASH_BITS), smallest + 1), largest)
    pairs = list(zip(documents, hashes, strict=True))
    return Split(
        train=tuple(document for document, value in pairs if value >= limit),
        heldout=tuple(document for document, value in pairs if value < limit),
    )


def is_heldout(text: bytes, holdout: float) -> bool:
    """Whether `split` holds a text out, if neither side is empty."""
    return hash_of(text) < int(holdout * 2**HASH_BITS)


def spread(
    documents: Sequence[Document], total_bytes: int, piece_bytes: int
) -> tuple[Document, ...]:
    """About `total_bytes` of text in pieces of about `piece_bytes`, evenly spread over `documents`.

    All documents, whole, if `total_bytes` is 0 or they hold no more than that.
    """
    if total_bytes == 0 or sum(len(document.text) for document in documents) <= total_bytes:
        return tuple(documents)
    pieces = [piece for document in documents for piece in cut(document, piece_bytes)]
    size = sum(len(piece.text) for piece in pieces)
    count = max(1, min(len(pieces), len(pieces) * total_bytes // size))
    return tuple(pieces[len(pieces) * index // count] for index in range(count))


def hash_of(text: bytes) -> int:
    """The hash of a document, below 2 ** `HASH_BITS`."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=HASH_BITS // 8).digest(), "big")
