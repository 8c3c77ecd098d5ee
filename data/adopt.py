"""Take over token shards of text that is known already: its files were touched, moved or copied.

The digest of the files' contents decides. Both directories hold the same files then, in the same
room on the disk, so that either may be deleted.
"""

import contextlib
from pathlib import Path
from typing import Any

from data import manifest, shards
from int_lm.errors import UserError
from int_lm.files import atomic, digest


def adopt(directory: Path, facts: dict[str, Any], contents: str) -> Path | None:
    """Fill a directory with the shards of another one, if there is one of the same text.

    Args:
      directory: of the shards; this process has its lock.
      facts: of `manifest.facts_of`, for `directory`.
      contents: digest of the files (`Source.contents`).

    Returns:
      The other directory; None if there is none whose shards are sound.

    Raises:
      OSError: the file system refused; what is finished is kept.
    """
    for other in sorted(directory.parent.iterdir()):
        found = None
        with contextlib.suppress(UserError):
            if other != directory and manifest.is_complete(other):
                found = manifest.read(other)
        if (
            found
            and found.get(manifest.CONTENTS) == contents
            and _without_paths(found, facts) == _without_paths(facts, facts)
        ):
            with contextlib.suppress(UserError):  # damaged: its own command says so
                for shard in found["shards"]:
                    _adopt_shard(other, directory, shard)
                manifest.write(directory, found | facts)
                return other
    return None


def _adopt_shard(other: Path, directory: Path, entry: dict[str, Any]) -> None:
    name = entry["name"]
    documents = f"{name}{manifest.DOCUMENTS}"
    if "documents_sha256" in entry:
        (directory / documents).unlink(missing_ok=True)
        atomic.link(str(other / documents), str(directory / documents))
    if not (directory / name).exists():
        shards.link(other / name, directory / name)


def _without_paths(found: dict[str, Any], facts: dict[str, Any]) -> str:
    """The entries of a manifest that `facts` has, too, without the paths of the text."""
    own = {key: found.get(key) for key in facts}
    return digest.canonical_json(own | {"source": {**found["source"], "path": None}})
