"""The text of a configuration: all prepared sources, their streams and their held-out text."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from data import streams
from data.documents import Document
from data.manifest import Prepared
from data.streams import Streams
from int_lm.config import Config
from int_lm.errors import UserError, counted
from int_lm.files import digest
from tokenization.interface import Tokenizer

Phases = list[tuple[int, list[float]]]


@dataclass(frozen=True, eq=False)
class Corpus:
    """The prepared sources of a configuration.

    Attributes:
      tokenizer: made the tokens.
      sources: in the order of the configuration.
    """

    tokenizer: Tokenizer
    sources: list[Prepared]

    def sha256(self) -> str:
        """SHA-256 in hex of all tokens and their layout. A resumed run must have the same."""
        return digest.of_json([source.sha256() for source in self.sources])

    def described(self) -> str:
        """A text for messages: the sources, with the files or the dataset of each."""
        return "; ".join(
            f"{own.name}: {' '.join(origin['path'])} {origin['revision']}".strip(": ")
            for own in self.sources
            for origin in [own.manifest["source"]]
        )

    def figures_of(self, heldout: dict[str, list[Document]]) -> dict[str, str | None]:
        """The entry `text` of figures of held-out documents: see `text_figures`."""
        flat = [document for documents in heldout.values() for document in documents]
        return text_figures(self.described(), flat, self.sha256())

    def training_text(self, most_bytes: int) -> bytes:
        """The text that is trained on, without separators; of much text, at most `most_bytes`.

        Sources are read one after another, windows in the order of the shards.
        """
        parts, left = [], most_bytes
        for source in self.sources:
            for shard in source.shards:
                tokens = shard.tokens[:left]  # a token has a byte at least, but for separators
                part = self.tokenizer.decode(tokens[tokens != self.tokenizer.separator])[:left]
                parts.append(part)
                left -= len(part)
        return b"".join(parts)

    def streams(self, settings: Config, phases: Phases, at_most: int | None = None) -> Streams:
        """The training streams: see `Mixture` for `phases`, and `streams.over` for `at_most`."""
        return streams.over(
            [(source.name, source.shards) for source in self.sources],
            self.tokenizer,
            streams=settings.es.streams,
            segment_length=settings.es.segment_length,
            seed=settings.run.seed,
            phases=phases,
            at_most=at_most,
        )

    def heldout(self, most_bytes: int) -> dict[str, list[Document]]:
        """Held-out documents of every source, at most about `most_bytes` of each (0: all).

        If a source has more, the documents returned are spread evenly over all of them.
        """
        return {
            source.name: _heldout(source, self.tokenizer, most_bytes) for source in self.sources
        }


def text_figures(
    source: str, documents: Sequence[Document], held_out_of: str | None
) -> dict[str, str | None]:
    """The entry `text` of figures: it identifies the text that was evaluated.

    Args:
      source: describes the source of the text, for messages.
      documents: all documents that were evaluated.
      held_out_of: digest (`Corpus.sha256`) of the text from which they were held out; None if it
        is not known whether a model was trained on them.

    Returns:
      {"source", "sha256", "held_out_of"}. `sha256` is the digest of all documents, each followed by
      a zero byte.
    """
    sha256 = hashlib.sha256()
    for document in documents:
        sha256.update(document.text + b"\0")
    return {"source": source, "sha256": sha256.hexdigest(), "held_out_of": held_out_of}


def phases_after(
    saved: Phases, weights: Sequence[float], first_round: int, sources: Sequence[str]
) -> Phases:
    """The phases of a mixture that goes on with `weights` from `first_round` on.

    Args:
      saved: the phases so far.
      weights: of the sources.
      first_round: the round from which `weights` hold.
      sources: names of the sources, for the error.

    Raises:
      UserError: `saved` has another number of sources.
    """
    phases = [(int(first), [float(weight) for weight in old]) for first, old in saved]
    if len(phases[-1][1]) != len(weights):
        raise UserError(
            "the checkpoint was written with "
            f"{counted(len(phases[-1][1]), 'source')}, now there are "
            f"{', '.join(sources)}; only weights may change"
        )
    if phases[-1][1] == list(weights):
        return phases
    return [phase for phase in phases if phase[0] < first_round] + [(first_round, list(weights))]


def _heldout(source: Prepared, tokenizer: Tokenizer, most_bytes: int) -> list[Document]:
    totals = source.manifest["totals"]
    count = totals["heldout_documents"]
    if most_bytes and totals["heldout_bytes"] > most_bytes:
        count = max(1, count * most_bytes // totals["heldout_bytes"])
    wanted = {totals["heldout_documents"] * index // count for index in range(count)}
    documents, number = [], 0
    for shard in source.shards:
        for begin, end in zip(shard.heldout[:-1], shard.heldout[1:], strict=True):
            if number in wanted:
                text = tokenizer.decode(shard.heldout_tokens[begin : end - 1])
                documents.append(Document(f"{source.name}#{number}", text))
            number += 1
    return documents
