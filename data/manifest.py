"""Manifests: they record the origin and the content of token shards, which are checked by them."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import shards, tally
from data.shards import Shard
from int_lm import progress
from int_lm.config import DataConfig, MixtureConfig
from int_lm.errors import UserError
from int_lm.files import atomic, digest, untrusted
from tokenization.interface import Tokenizer, identity

FORMAT_VERSION = 2
FILE = "manifest.json"
CONTENTS = "contents_sha256"  # entry: `Source.contents` of what the shards were made from
DOCUMENTS = ".documents.npy"  # beside a shard: uint64, sorted hashes of the documents to train on
FILE_BYTES = 1 << 24  # the largest manifest: 50 000 shards, 3 TB of text


@dataclass(frozen=True, eq=False)
class Prepared:
    """A source whose shards are complete and have been checked.

    Attributes:
      name: of the source.
      weight: of the source in the mixture.
      directory: holds the shards.
      manifest: what the shards were made from and what they hold (see `manifest_of`).
      shards: memory-mapped.
    """

    name: str
    weight: float
    directory: Path
    manifest: dict[str, Any]
    shards: list[Shard]

    def sha256(self) -> str:
        """SHA-256 in hex of the tokens and their layout. It does not depend on names."""
        return digest.of_json([shard["sha256"] for shard in self.manifest["shards"]])


def facts_of(data: DataConfig, source: MixtureConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything that shards depend on, except the text itself, as JSON values."""
    named = dataclasses.asdict(source)
    del named["weight"], named["name"]
    del named["skip_damaged"]  # the text that is left does not depend on this limit
    return {
        "format_version": FORMAT_VERSION,
        "source": {**named, "path": list(named["path"])},
        "tokenizer": identity(tokenizer),
        "holdout": data.holdout,
        "document_bytes": data.document_bytes if source.source == "text" else 0,
        "shard_bytes": data.shard_bytes,
        "window": shards.WINDOW,
        "window_bytes": data.window_bytes,
    }


def shard_name(number: int) -> str:
    """The name of a shard's directory."""
    return f"{number:05}"


def manifest_of(
    directory: Path, facts: dict[str, Any], counts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The manifest of shards: `facts`, digests of each shard and of its documents, their counts.

    Args:
      directory: of the shards.
      facts: of `facts_of`.
      counts: `shards.COUNTS` of every shard, in order.
    """
    listed = []
    for number, shard in enumerate(counts):
        name = shard_name(number)
        listed.append(
            {"name": name, "sha256": _seal_of(directory / name)}
            | _digest_of_documents(directory / f"{name}{DOCUMENTS}")
            | {key: shard[key] for key in shards.COUNTS}
        )
    return {**facts, "totals": _totals(listed), "shards": listed}


def _totals(listed: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {key: sum(shard[key] for shard in listed) for key in shards.COUNTS}


def _digest_of_documents(path: Path) -> dict[str, str]:
    """The entry of a shard's file of documents; none if an earlier version made the shard."""
    return {"documents_sha256": digest.of_file(path)} if path.exists() else {}


def write(directory: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest, with a digest of itself.

    Raises:
      OSError: the file system refused; an older manifest is unchanged.
    """
    sealed = {**manifest, "sha256": digest.of_json(manifest)}
    atomic.write(directory / FILE, (json.dumps(sealed, indent=2) + "\n").encode())


def _seal_of(shard: Path) -> str:
    """SHA-256 of a shard's list of digests, which covers all of its files."""
    return hashlib.sha256((shard / digest.FILE_DIGESTS).read_bytes()).hexdigest()


def read(directory: Path) -> dict[str, Any]:
    """The manifest of a directory of shards, as `write` was given it.

    Raises:
      UserError: the manifest is missing or damaged.
    """
    path = directory / FILE
    try:
        manifest = untrusted.read_json(path, FILE_BYTES, inside=directory)
        expected = manifest.pop("sha256", None) if isinstance(manifest, dict) else None
        if expected == digest.of_json(manifest) and _is_manifest(manifest):
            return manifest
    except (OSError, untrusted.MalformedError) as error:
        raise UserError(f"{path} is damaged; delete it and run the same command") from error
    raise UserError(f"{path} is damaged; delete it and run the same command")


def _is_manifest(value: dict[str, Any]) -> bool:
    """Whether all entries used are there, with their types, and names stay in the directory."""
    listed, source = value.get("shards"), value.get("source")
    return (
        isinstance(listed, list)
        and all(shards.has_counts(shard) for shard in listed)
        and [shard.get("name") for shard in listed] == [shard_name(i) for i in range(len(listed))]
        and all(isinstance(shard.get("sha256"), str) for shard in listed)
        and all(isinstance(shard.get("documents_sha256", ""), str) for shard in listed)
        and shards.has_counts(value.get("totals"))
        and value["totals"] == _totals(listed)
        and isinstance(source, dict)
        and isinstance(source.get("path"), list)
        and all(isinstance(path, str) for path in source["path"])
        and isinstance(source.get("revision"), str)
        and type(value.get("first", 0)) is int
        and type(value.get("last", True)) is bool
        and tally.is_state(value.get("tally", {}))
    )


def is_complete(directory: Path) -> bool:
    """Whether the manifest and every shard that it lists exist. Raises what `read` raises."""
    if not (directory / FILE).exists():
        return False
    return all((directory / shard["name"]).exists() for shard in read(directory)["shards"])


def open_prepared(directory: Path, source: MixtureConfig, tokenizer: Tokenizer) -> Prepared:
    """Check every shard against the manifest, and memory-map it.

    Raises:
      UserError: the manifest or a shard is damaged, or holds ids that are not the tokenizer's; or
        more damaged records were left out than `source` allows.
    """
    manifest = read(directory)
    count, first = tally.damaged(manifest.get("tally", {}))
    if count > source.skip_damaged:
        raise UserError(
            f"{count} damaged records were left out of {directory}, more than --data.skip_damaged "
            f"{source.skip_damaged} allows (first: {first}); raise it, or repair the records"
        )
    names = [(shard["name"], shard["sha256"]) for shard in manifest["shards"]]
    with progress.bar("checking shards", len(names)) as update:
        for name, sha256 in names:
            shards.check(directory / name)
            if _seal_of(directory / name) != sha256:
                raise UserError(
                    f"the token shard {directory / name} is not the one in {FILE}; delete "
                    f"{directory} and run the same command"
                )
            update(1)
    return Prepared(
        name=source.name,
        weight=source.weight,
        directory=directory,
        manifest=manifest,
        shards=[
            shards.load(directory / shard["name"], shard, tokenizer) for shard in manifest["shards"]
        ],
    )
