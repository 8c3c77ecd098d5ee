"""Push: writes an export to a model repository of the Hugging Face hub, in one commit."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from int_lm import hub, runtime
from int_lm.errors import UserError
from int_lm.export import directory as places
from int_lm.files import digest

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

_LEFT = {".gitattributes"}  # which the hub makes
_MARKS = {places.RUNTIME_FILE, runtime.CONFIG_FILE, runtime.WEIGHTS_FILE, digest.FILE_DIGESTS}


def check(directory: str | Path) -> None:
    """Refuse (`UserError`) a directory that is no export as it was written."""
    directory = Path(directory)
    places.check_own(directory)
    try:
        sealed = digest.check(directory)
    except digest.DamagedError as error:
        raise UserError(f"{error}; export the run again before it is pushed") from error
    if not sealed:
        raise UserError(f"{directory} has no {digest.FILE_DIGESTS}; export the run again")


def check_token() -> str:
    """The token of the hub.

    Raises:
      UserError: there is none.
    """
    import huggingface_hub

    token = huggingface_hub.get_token()
    if not token:
        raise UserError(
            "--push needs a token of the Hugging Face hub that may write; log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    return token


def push(
    directory: str | Path, name: str, *, revision: str | None = None, private: bool = False
) -> str:
    """Make the repository if it is missing, and make its files those of an export.

    All files change in one commit, or none. An export of int_lm that is there is replaced, and its
    commits stay. Anything else is refused.

    Args:
      directory: the export.
      name: OWNER/NAME.
      revision: the branch; it is made if it is missing. None for the main one.
      private: whether a repository that is made is private.

    Returns:
      `hf://OWNER/NAME@COMMIT`, which `hub.local` reads.

    Raises:
      UserError: the directory is no export, the repository holds something else, or the hub refused
        or does not answer. The directory is unchanged.
    """
    directory = Path(directory)
    hub.checked_name(name)
    if revision is not None:
        hub.checked_revision(revision)
    check(directory)
    token = check_token()
    import huggingface_hub

    config = json.loads((directory / runtime.CONFIG_FILE).read_text(encoding="utf-8"))
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    own = {path.relative_to(directory).as_posix(): path for path in paths}
    own = {place: path for place, path in own.items() if places.is_own(place)}
    with hub.explained(name):
        hub.quiet()
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(name, private=private or None, exist_ok=True)
        found = _checked(api, name, revision, private)
        there = {each.rfilename for each in found.siblings or []} - _LEFT
        made = api.create_commit(
            name,
            [
                *(huggingface_hub.CommitOperationAdd(place, path) for place, path in own.items()),
                *(
                    huggingface_hub.CommitOperationDelete(place)
                    for place in sorted(there - set(own))
                ),
            ],
            commit_message=f"Step {config['step']}, weights {config['weights_hash']}",
            revision=revision,
            parent_commit=found.sha,
        )
    return f"{hub.PREFIX}{name}@{made.oid}"


def _checked(api: "HfApi", name: str, revision: str | None, private: bool) -> "ModelInfo":
    """What the repository is at a branch, which is made if it is missing.

    Raises:
      UserError: it holds anything but an export, or should be private and is not.
    """
    from huggingface_hub.errors import RevisionNotFoundError

    missing = False
    try:
        found = api.model_info(name, revision=revision)
    except RevisionNotFoundError:
        found, missing = api.model_info(name), True
    if others := _others({each.rfilename for each in found.siblings or []} - _LEFT):
        at = f"{name} at {revision}" if revision and not missing else name
        raise UserError(
            f"the repository {at} holds {', '.join(others[:3])}, which is no export of int_lm; "
            "choose another --push or --revision"
        )
    if private and not found.private:
        raise UserError(
            f"the repository {name} exists and is public; make it private there, or leave out "
            "--private"
        )
    if missing:  # a branch begins with the files of the main one
        api.create_branch(name, branch=str(revision))
    return found


def _others(there: set[str]) -> list[str]:
    """The files of a repository because of which it may not be replaced by an export."""
    others = sorted(place for place in there if not places.is_own(place))
    return others or (sorted(there) if there and not there >= _MARKS else [])
