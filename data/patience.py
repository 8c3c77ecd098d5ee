"""Try again what the hub did not give: networks and servers fail now and then."""

import time
from collections.abc import Callable
from typing import TypeVar

from data.documents import Notice
from int_lm.errors import UserError

TRIES, FIRST_WAIT = 8, 1.0  # if the hub does not answer; seconds, doubled after every try
NETWORK = {"aiohttp", "fsspec", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"}

T = TypeVar("T")


class Patience:
    """Waits after a failure of the hub, longer each time, until something succeeds."""

    def __init__(self, name: str, notice: Notice | None = None) -> None:
        """Begin without failures.

        Args:
          name: the dataset, for errors.
          notice: called with one sentence before every wait.
        """
        self._name, self._notice, self._failures = name, notice, 0
        self.sleep: Callable[[float], None] = time.sleep

    def __call__(self, action: Callable[[], T]) -> T:
        """The result of `action`, which is tried again after failures that may pass.

        Raises:
          UserError: the errors of `failed`, or of `action`.
        """
        while True:
            try:
                result = action()
            except UserError:
                raise
            except Exception as error:
                self.failed(error)
            else:
                self.succeeded()
                return result

    def succeeded(self) -> None:
        """Forget the failures so far."""
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """Wait, so that the caller can try again.

        Raises:
          UserError: another try would fail, too, or there were `TRIES` of them.
        """
        self._failures += 1
        if not _may_pass(error):
            raise self._refusal(error) from error
        if self._failures == TRIES:
            raise UserError(
                f"the hub did not give {self._name} in {TRIES} tries ({first_line(error)}); "
                "check the connection, or name local files with --data.source parquet; "
                "what is prepared is kept"
            ) from error
        wait = FIRST_WAIT * 2 ** (self._failures - 1)
        if self._notice:
            self._notice(f"the hub failed ({first_line(error)}); again in {wait:g} s")
        self.sleep(wait)

    def _refusal(self, error: Exception) -> UserError:
        if isinstance(error, OSError) and _on_own_disk(error):
            return UserError(
                f"cannot keep files of the hub at {error.filename}: {error.strerror}; set HF_HOME "
                "to a directory that can be written to"
            )
        return UserError(
            f"cannot read {self._name} from the hub: {first_line(error)}; name another dataset, or "
            "local files with --data.source parquet or json"
        )


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _may_pass(error: Exception) -> bool:
    """Whether to try again: true if the network or the server failed, not the request."""
    import huggingface_hub.errors as hub

    if isinstance(error, hub.LocalEntryNotFoundError):  # not in the cache, and no connection
        return True
    if isinstance(error, hub.RepositoryNotFoundError | hub.RevisionNotFoundError):
        return False
    if isinstance(error, FileNotFoundError | hub.EntryNotFoundError) or _on_own_disk(error):
        return False
    modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(modules & NETWORK)


def _on_own_disk(error: Exception) -> bool:
    """Whether the error is about a file of this machine: `datasets` keeps a cache there."""
    return isinstance(error, OSError) and error.errno is not None and bool(error.filename)
