"""What a client is told when a request is refused, in OpenAI's form."""

from typing import Any

from int_lm.errors import counted


class RefusalError(Exception):
    """A request that is refused: one sentence.

    Attributes:
      status: of HTTP.
      parameter: the field of the request that is wrong, if it is one.
      code: a name of it for programs, if it has one.
      headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        parameter: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.parameter, self.code = status, parameter, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The object that stands for it in JSON."""
        of_client = self.status < 500
        error = {
            "message": str(self),
            "type": "invalid_request_error" if of_client else "server_error",
            "param": self.parameter,
            "code": self.code,
        }
        return {"error": error}


def overloaded(waiting: int) -> RefusalError:
    """What a server says that has no room for a request now."""
    return RefusalError(
        503,
        f"the server is busy and {counted(waiting, 'request')} "
        f"{'waits' if waiting == 1 else 'wait'} already; try again later",
        code="overloaded",
        headers={"Retry-After": "1"},
    )


def stopping() -> RefusalError:
    """What a server says that is being stopped."""
    return RefusalError(503, "the server is stopping; try again later", code="stopping")
