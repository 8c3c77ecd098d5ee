"""The routes: completions, models, health, and a page to try the model in a browser."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from importlib import resources
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from int_lm.serve import request as request_module
from int_lm.serve.lanes import Job
from int_lm.serve.refusal import RefusalError
from int_lm.serve.request import Limits, Served, Wanted
from int_lm.serve.worker import Worker
from int_lm.serve.writing import Spelling, Text

INLINE_BYTES = 1 << 14  # a longer body is read in a thread, so that other clients do not wait
DISCARDING_SECONDS = 5  # for the rest of a body that is refused, so that its sender hears of it
CHAT = "/v1/chat/completions"
PAGE_POLICY = (  # the page is one file and reaches only its own server
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


class Desk:
    """Answers requests.

    Args:
      served: the model, as requests name it.
      fingerprint: hash of its weights.
      spelling: of its tokens.
      limits: what is accepted.
    """

    def __init__(
        self, served: Served, fingerprint: str, spelling: Spelling, limits: Limits
    ) -> None:
        self._served, self._fingerprint = served, fingerprint
        self._spelling, self._limits = spelling, limits
        self._created = int(time.time())
        self._events: dict[Job, asyncio.Event] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.worker = Worker(spelling.model, limits, self._moved)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for completions."""
        self._loop = asyncio.get_running_loop()
        try:
            data = await self._body(Request(scope, receive))
        except ClientDisconnect:
            return
        parse = request_module.parse
        if len(data) > INLINE_BYTES:
            wanted = await asyncio.to_thread(parse, data, self._served, self._limits)
        else:
            wanted = parse(data, self._served, self._limits)
        job = Job(wanted, self._spelling)
        async with self._submitted(job) as event:
            if wanted.stream:
                await _unless_gone(receive, self._stream(job, event, send))
            elif await _unless_gone(receive, self._ended(job, event)):
                choices = [_choice(i, text, wanted) for i, text in enumerate(job.texts)]
                answer = self._answer(_new_id(), choices) | {"usage": _usage(job)}
                await _json(answer)(scope, receive, send)

    async def _body(self, request: Request) -> bytes:
        """The body of a request.

        Raises:
          RefusalError: it is no JSON, too long, or too slow.
          ClientDisconnect: the client has hung up.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        most, seconds = self._limits.max_body_bytes, self._limits.timeout
        parts, stream = bytearray(), request.stream()
        refused = None
        if kind != "application/json":
            refused = RefusalError(
                415, f"the body is {kind or 'of no type'}, must be application/json"
            )
        try:
            async with asyncio.timeout(seconds):
                async for part in stream:
                    parts += b"" if refused else part
                    if len(parts) > most:
                        refused = RefusalError(413, f"the body has more than {most} bytes")
                    if refused:
                        break
        except TimeoutError as error:
            raise RefusalError(408, f"the body did not come within {seconds} seconds") from error
        if refused:
            with contextlib.suppress(TimeoutError, ClientDisconnect):
                async with asyncio.timeout(DISCARDING_SECONDS):
                    async for _ in stream:
                        pass
            raise refused
        return bytes(parts)

    @contextlib.asynccontextmanager
    async def _submitted(self, job: Job) -> AsyncIterator[asyncio.Event]:
        """Have a job computed until the end of this context; the event says that it has moved."""
        event = self._events[job] = asyncio.Event()
        try:
            self.worker.submit(job)
            yield event
        finally:
            del self._events[job]
            self.worker.give_up(job)

    def _moved(self, jobs: list[Job]) -> None:
        """Called in the worker's thread."""
        if jobs and self._loop:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                self._loop.call_soon_threadsafe(self._wake, jobs)

    def _wake(self, jobs: list[Job]) -> None:
        for job in jobs:
            if event := self._events.get(job):
                event.set()

    @staticmethod
    async def _ended(job: Job, event: asyncio.Event) -> bool:
        """Wait for the end of a job; True.

        Raises:
          RefusalError: it was not computed to its end.
        """
        while job.left:
            await event.wait()
            event.clear()
            if job.refusal:
                raise job.refusal
        return True

    async def _stream(self, job: Job, event: asyncio.Event, send: Send) -> None:
        """Send what texts grow by, as server-sent events."""
        name, wanted, going = _new_id(), job.wanted, dict(enumerate(job.texts))

        async def say(data: bytes, more: bool = True) -> None:
            body = b"data: " + data + b"\n\n"
            message = {"type": "http.response.body", "body": body, "more_body": more}
            async with asyncio.timeout(self._limits.timeout):
                await send(message)

        headers = [(key.encode(), value.encode()) for key, value in EVENTS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with contextlib.suppress(TimeoutError):  # the client reads nothing: it is left
            while going and not job.refusal:
                await event.wait()
                event.clear()
                for index, text in list(going.items()):
                    choice = _choice(index, text, wanted)
                    if choice["finish_reason"]:
                        del going[index]
                    elif not choice["text"] and not choice["logprobs"]:
                        continue
                    chunk = self._answer(name, [choice])
                    await say(
                        msgspec.json.encode(chunk | ({"usage": None} if wanted.usage else {}))
                    )
            if going and job.refusal:
                await say(msgspec.json.encode(job.refusal.body()))
            elif wanted.usage:
                await say(msgspec.json.encode(self._answer(name, []) | {"usage": _usage(job)}))
            await say(b"[DONE]", more=False)

    def _answer(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": name,
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._served.name,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
        }

    async def models(self, request: Request) -> Response:
        """The list of models: one."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """A model by name.

        Raises:
          RefusalError: it is not here.
        """
        request_module.check_model(request.path_params["name"], self._served)
        return _json(self._model())

    def _model(self) -> dict[str, Any]:
        model = {"id": self._served.name, "object": "model", "created": self._created}
        return model | {"owned_by": "int_lm", "weights_hash": self._fingerprint}

    async def health(self, request: Request) -> Response:
        """That the server is there, and how busy it is."""
        return _json({"status": "ok"} | self.worker.counts())


class Hosts:
    """Refuses requests that name another host, as those of a web page from elsewhere do.

    Args:
      app: what is asked otherwise.
      names: that are accepted; empty: all.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        app = self._app
        if self._names and scope["type"] == "http":
            given = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            name = given if given.endswith("]") else given.rpartition(":")[0] or given
            if given and name.lower() not in self._names:
                known = ", ".join(sorted(self._names))
                app = _refusal(
                    RefusalError(403, f"the host {given[:100]!r} is not served; use {known}")
                )
        await app(scope, receive, send)


def application(desk: Desk, hosts: frozenset[str]) -> Starlette:
    """The ASGI application.

    Args:
      desk: answers what is asked of the model.
      hosts: names in `Host` of a request that are accepted; empty: all.
    """
    page = resources.files("int_lm.serve").joinpath("page.html").read_bytes()

    async def front(request: Request) -> Response:
        headers = {"content-security-policy": PAGE_POLICY, "cache-control": "no-cache"}
        return Response(page, headers=headers, media_type="text/html")

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusalError)
        return _refusal(error)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path[:100]}: {error.detail}"
        if request.url.path == CHAT:
            message = "the model continues text and knows no roles; use /v1/completions"
        headers = dict(error.headers or {})
        return _refusal(RefusalError(error.status_code, message, headers=headers))

    async def failed(request: Request, error: Exception) -> Response:
        return _refusal(RefusalError(500, "the server failed; its own output says more"))

    return Starlette(
        routes=[
            Route("/v1/completions", desk, methods=["POST"]),
            Route("/v1/models", desk.models),
            Route("/v1/models/{name:path}", desk.model),
            Route("/health", desk.health),
            Route("/", front),
        ],
        exception_handlers={RefusalError: refused, HTTPException: unknown, Exception: failed},
        middleware=[Middleware(Hosts, names=hosts)],
    )


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`; None if the client hangs up before, and the work is cancelled."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _choice(index: int, text: Text, wanted: Wanted) -> dict[str, Any]:
    """A choice of a response: what has become ready of a text."""
    reason = text.finish_reason  # asked first: what belongs to the text is ready by then
    piece = text.taken()
    scored = wanted.logprobs is not None and (piece.tokens or not wanted.stream)
    return {
        "index": index,
        "text": piece.text,
        "logprobs": piece.logprobs() if scored else None,
        "finish_reason": reason,
        "seed": text.seed,
    }


def _usage(job: Job) -> dict[str, int]:
    prompt, written = sum(map(len, job.wanted.prompts)), sum(text.count for text in job.texts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }


def _new_id() -> str:
    return f"cmpl-{secrets.token_hex(12)}"


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    data = msgspec.json.encode(value)
    return Response(data, status, headers, media_type="application/json")


def _refusal(error: RefusalError) -> Response:
    return _json(error.body(), error.status, error.headers)
