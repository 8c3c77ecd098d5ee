"""The Hugging Face hub: an export named `hf://OWNER/NAME@REVISION`, and what can go wrong there.

Everything goes through `huggingface_hub`: its cache, its token (`hf auth login`, or HF_TOKEN), and
its variables such as HF_ENDPOINT and HF_HUB_OFFLINE. It is imported only where a name of the hub is
given.
"""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from int_lm.errors import UserError, say

PREFIX = "hf://"
READ = ("config.json", "model.safetensors", "tokenizer/*")  # of an export; none of it is run
_REVISION = re.compile(r"[\w.-]+(?:/[\w.-]+)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def checked_name(name: str) -> str:
    """`name`, if it has the form OWNER/NAME that the hub allows.

    Raises:
      UserError: it has another form.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"{name!r} is no name of a repository of the hub ({_first_line(error)}); give it as "
            "OWNER/NAME"
        ) from error
    if "/" not in name:
        raise UserError(f"{name!r} does not say whose repository it is; give it as OWNER/NAME")
    return name


def checked_revision(revision: str) -> str:
    """`revision`, if it can be the name of a branch, a tag or a commit.

    Raises:
      UserError: it cannot.
    """
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise UserError(f"{revision!r} is no revision of a repository; name a branch or a commit")
    return revision


def local(path: str | Path) -> Path:
    """The directory that `path` names: itself, or that of the files of `hf://OWNER/NAME@REVISION`.

    Only what is read of an export is downloaded, into the cache of `huggingface_hub`; nothing of it
    is run. Without `@REVISION` it is the newest one; which one that is, is said.

    Raises:
      UserError: the name is malformed, or the hub does not give the files.
    """
    if not str(path).startswith(PREFIX):
        return Path(path)
    name, at, revision = str(path).removeprefix(PREFIX).partition("@")
    checked_name(name)
    if at:
        checked_revision(revision)
    import huggingface_hub

    with explained(name):
        quiet()
        found = Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=list(READ)
            )
        )
    if not _COMMIT.fullmatch(revision):
        say(f"{path} is now revision {found.name}; {PREFIX}{name}@{found.name} is always this one")
    return found


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Whatever `huggingface_hub` raises about the repository `name` becomes one `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        sentence = _sentence(error, name)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def _sentence(error: BaseException, name: str) -> str | None:
    """What an error of `huggingface_hub` means; None if it is none of the hub or the network."""
    from huggingface_hub import constants, errors

    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of an upload
        why = _sentence(error.__cause__, name)
        return why or f"the upload to {name} failed ({_first_line(error.__cause__)}); try again"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository {name} has no such revision; name another"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub has no repository {name} that you may read; check the name, and if it is "
            "private, log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        why = {
            401: "does not accept your token; log in with `hf auth login` or set HF_TOKEN",
            403: f"does not let your token write to {name}; choose another name or another token",
            409: f"says that {name} changed meanwhile or exists in another form; try again",
            412: f"says that {name} changed meanwhile; try again",
        }.get(status, f"answered {status}: {_first_line(error)}; try again later")
        return f"the hub ({constants.ENDPOINT}) {why}"
    if not _of_network(error):
        known = isinstance(error, RuntimeError | ValueError)  # of the library: native, or its own
        return (
            f"the hub's library failed on {name} ({_first_line(error)}); try again" * known or None
        )
    return (
        f"the hub ({constants.ENDPOINT}) does not answer about {name} ({_first_line(error)}); "
        "check the connection, HF_ENDPOINT and HF_HUB_OFFLINE"
    )


def _of_network(error: BaseException) -> bool:
    """Whether an error is about the connection, or about files that only it could bring."""
    from huggingface_hub import errors

    modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    absent = errors.LocalEntryNotFoundError, ConnectionError, TimeoutError  # of xet, too
    return isinstance(error, absent) or bool(modules & {"httpx", "httpx2", "requests"})


def quiet() -> None:
    """Without a terminal, no progress bars."""
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
