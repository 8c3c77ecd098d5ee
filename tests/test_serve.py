"""The server: the runtime's own text for every seed and many clients at once; refusals; the end."""

import asyncio
import contextlib
import http.client
import itertools
import json
import math
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import example, given
from tiny_run import export_tiny_run, tiny_run

from int_lm import runtime
from int_lm.config import ModelConfig
from int_lm.errors import UserError
from int_lm.serve import __main__ as command
from int_lm.serve.lanes import Batch, Job
from int_lm.serve.refusal import RefusalError
from int_lm.serve.request import Limits, Served, parse
from int_lm.serve.worker import Worker
from int_lm.serve.writing import NATS, Spelling, Text
from tests import presets
from tokenization import ByteTokenizer, train

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

MODEL = ModelConfig(architecture="rwkv", width=24, layers=1, direct=(1, 3), direct_bits=10)
NAME = "export"
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0, "seed": 0},
    {"temperature": 1.0, "seed": 2**32 - 1},
    {"temperature": 0.7, "seed": 5, "top_k": 30, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.2, "seed": 6, "repetition_penalty": 1.3},
    {"temperature": 1.2, "seed": 7, "repetition_penalty": 1.3, "repetition_window": 5},
]
GOOD = {"model": NAME, "prompt": "a"}
ENDLESS: dict[str, Any] = GOOD | {"temperature": 0, "max_tokens": 10**9, "stream": True}


class Server:
    """A running `python -m int_lm.serve`."""

    def __init__(self, export: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "int_lm.serve", "--export", export, "--port", "0", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        found = re.fullmatch(r"serving export at (http://127\.0\.0\.1:(\d+)) \(.*\)\n", line)
        assert found, line + self.stop(signal.SIGKILL)
        self.url, self.port = found[1], int(found[2])

    def client(self, **options: Any) -> Any:
        """The official client, which does not try again by itself."""
        options = {"max_retries": 0, "timeout": 120} | options
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", **options)

    def ask(
        self, body: Any, path: str = "/v1/completions", **headers: str
    ) -> tuple[int, dict[str, Any], http.client.HTTPMessage]:
        """Status, JSON and headers of the answer to a POST, or to a GET without a body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"} | headers
            connection.request("GET" if body is None else "POST", path, data, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read()), response.headers

    def busy(self) -> int:
        """Texts that are being written, and requests that wait."""
        status, health, _ = self.ask(None, "/health")
        assert status == 200 and health["status"] == "ok"
        return health["texts"] + health["waiting"]

    def wait_until(self, busy: int) -> None:
        """Wait until so many texts and waiting requests are there."""
        end = time.monotonic() + 60
        while self.busy() != busy:
            assert time.monotonic() < end
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> str:
        """Send a signal and wait for the end; stderr."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[1]


@contextlib.contextmanager
def running(export: Path, *arguments: str) -> Iterator[Server]:
    """A server that must end as it is asked to, without having printed an error."""
    server = Server(export, *arguments)
    try:
        yield server
        stderr = server.stop()
        assert server.process.returncode == 128 + signal.SIGTERM
        assert stderr.splitlines()[-1].endswith("SIGTERM: stopped; no request is answered any more")
        assert "Traceback" not in stderr and "Exception" not in stderr
    finally:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny_run(tiny_run(model=MODEL), tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def model(export: Path) -> runtime.Model:
    return runtime.load(export)


@pytest.fixture(scope="module")
def unending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export whose likeliest token is never the separator, so that `ENDLESS` does not end."""
    run = tiny_run(model=presets.egg(width=24, layers=1))
    run.weights.network["head"][0] = 0
    return export_tiny_run(run, tmp_path_factory.mktemp("unending"))


@pytest.fixture(scope="module")
def server(export: Path) -> Iterator[Server]:
    with running(export) as server:
        yield server


@pytest.fixture(scope="module")
def small(unending: Path) -> Iterator[Server]:
    """A server with room for two texts and one request that waits."""
    limits = {"concurrent": 2, "queued": 1, "timeout": 1, "max_body_bytes": 5000}
    limits |= {"max_prompt_tokens": 1000, "max_tokens": 10**9}
    with running(unending, *(f"--{name}={value}" for name, value in limits.items())) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with server.client() as client:
        yield client


def own_ids(
    model: runtime.Model, prompt: bytes | list[int], tokens: int, **settings: Any
) -> list[int]:
    """What the runtime itself writes."""
    sampler, read = runtime.Sampler(**settings), runtime.reader(model)
    return list(runtime.generate(read, list(prompt), sampler, tokens=tokens))


def own_text(model: runtime.Model, prompt: bytes | list[int], tokens: int, **settings: Any) -> str:
    """The same as text."""
    return bytes(own_ids(model, prompt, tokens, **settings)).decode(errors="replace")


def of_openai(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the client: what OpenAI does not have is given as `extra_body`."""
    extra = {key: settings[key] for key in settings if key not in ("temperature", "seed", "top_p")}
    return {key: settings[key] for key in settings if key not in extra} | {"extra_body": extra}


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_text_is_the_runtimes_own(
    client: Any, model: runtime.Model, settings: dict[str, Any]
) -> None:
    """Whole and streamed, with every setting of a draw."""
    arguments = {"model": NAME, "prompt": "pröm", "max_tokens": 60} | of_openai(settings)
    expected = own_text(model, "pröm".encode(), 60, **settings)
    whole = client.completions.create(**arguments)
    assert whole.choices[0].text == expected
    assert whole.system_fingerprint == model.config["weights_hash"]
    chunks = list(client.completions.create(**arguments, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason]


def test_the_text_is_that_of_the_command(client: Any, export: Path) -> None:
    """`python -m int_lm.sample --export` prints the prompt and the same text."""
    arguments = ["--prompt", "A € ", "--tokens", "40", "--seed", "3", "--stop", "xy"]
    done = subprocess.run(
        [sys.executable, "-m", "int_lm.sample", "--export", export, *arguments],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    answer = client.completions.create(
        model=NAME, prompt="A € ", max_tokens=40, seed=3, temperature=0.8, stop="xy", echo=True
    )
    assert done.stdout.decode() == answer.choices[0].text + "\n"


def test_several_texts_of_several_prompts(client: Any, model: runtime.Model) -> None:
    """Text i of every prompt has the seed of the request + i; prompts may be ids."""
    answer = client.completions.create(model=NAME, prompt=["a", "bc"], n=3, seed=4, max_tokens=20)
    assert [choice.index for choice in answer.choices] == list(range(6))
    expected = [
        (own_text(model, prompt, 20, temperature=1.0, seed=seed), seed)
        for prompt in (b"a", b"bc")
        for seed in (4, 5, 6)
    ]
    assert [(choice.text, choice.seed) for choice in answer.choices] == expected
    by_ids = client.completions.create(
        model=NAME, prompt=[[97], [98, 99]], n=3, seed=4, max_tokens=20
    )
    assert [choice.text for choice in by_ids.choices] == [text for text, _ in expected]
    assert by_ids.usage == answer.usage
    assert answer.usage.prompt_tokens == 3
    written = [
        own_ids(model, p, 20, temperature=1.0, seed=s) for p in (b"a", b"bc") for s in (4, 5, 6)
    ]
    assert answer.usage.completion_tokens == sum(map(len, written))


def test_a_seed_that_is_drawn_is_said(client: Any, model: runtime.Model) -> None:
    """Without a seed every request has another one, and it can be asked for again."""
    answers = [
        client.completions.create(model=NAME, prompt="", max_tokens=20).choices[0] for _ in "ab"
    ]
    assert answers[0].seed != answers[1].seed
    for answer in answers:
        assert answer.text == own_text(model, b"", 20, temperature=1.0, seed=answer.seed)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_exact(client: Any, model: runtime.Model, stream: bool) -> None:
    """Those of a prompt sum to the exact likelihood; every one is that of the logits."""
    prompt = "né\n€".encode()
    answer = client.completions.create(
        **{"model": NAME, "prompt": prompt.decode(), "seed": 1, "temperature": 1.5},
        **{"max_tokens": 8, "echo": True, "logprobs": 3, "stream": stream},
    )
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    found = [c.logprobs for c in choices if c.logprobs]
    tokens = [token for part in found for token in part.tokens]
    values = [value for part in found for value in part.token_logprobs]
    likeliest = [each for part in found for each in part.top_logprobs]
    offsets = [offset for part in found for offset in part.text_offset]
    ids = [*prompt, *own_ids(model, prompt, 8, temperature=1.5, seed=1)]
    assert len(ids) > len(prompt)
    assert tokens == [chr(i) if i < 128 else f"bytes:\\x{i:02x}" for i in ids]
    units = runtime.log2_likelihoods(model, [prompt], firsts=[0])[0]
    assert math.isclose(sum(values[: len(prompt)]), units * NATS, rel_tol=1e-12)
    read = runtime.reader(model)
    for place, token in enumerate(ids):
        logits_V = read(ids[place - 1] if place else 0)
        of_all = runtime.log2_likelihood(model, np.tile(logits_V, (256, 1)), np.arange(256)) * NATS
        assert values[place] == of_all[token]
        three = sorted(of_all, reverse=True)[:3]
        shown = list(likeliest[place].values())
        assert shown == sorted({*three, values[place]}, reverse=True)
        assert likeliest[place][tokens[place]] == values[place]
    text = "".join(choice.text for choice in choices)
    assert text == bytes(ids).decode(errors="replace")
    for token, offset in zip(tokens, offsets, strict=True):
        assert text[offset] == token or (token.startswith("bytes:") and ord(text[offset]) > 127)
    assert offsets[:7] == [0, 1, 1, 2, 3, 3, 3]


def test_a_prompt_is_scored_without_a_text(client: Any, model: runtime.Model) -> None:
    """`echo` with no tokens, as evaluation harnesses ask."""
    answer = client.completions.create(
        model=NAME, prompt="abc", max_tokens=0, echo=True, logprobs=0
    )
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("abc", "length")
    units = runtime.log2_likelihoods(model, [b"abc"], firsts=[0])[0]
    assert math.isclose(sum(choice.logprobs.token_logprobs), units * NATS, rel_tol=1e-12)
    assert answer.usage.completion_tokens == 0


def test_a_stream_ends_with_the_usage(client: Any) -> None:
    """If it is asked for: a last chunk without choices; the others have none."""
    *chunks, last = client.completions.create(
        **{"model": NAME, "prompt": "ab", "max_tokens": 5, "temperature": 0, "n": 2, "seed": 1},
        **{"stream": True, "stream_options": {"include_usage": True}},
    )
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == [] and last.usage.prompt_tokens == 2
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens


def test_models_and_health(client: Any, server: Server) -> None:
    """The list has the model, which is found by its name."""
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here"):
        client.models.retrieve("other")
    assert server.ask(None, "/health")[:2] == (200, {"status": "ok", "texts": 0, "waiting": 0})


MALFORMED: list[tuple[Any, str]] = [
    (b"", "the body is not JSON"),
    (b"{", "the body is not JSON"),
    (b"\xff\xfe", "the body is not JSON"),
    (b"[" * 4000, "the body is not JSON|must be"),
    (b'{"model": "export", "prompt": "a", "temperature": NaN}', "the body is not JSON"),
    (b'{"model": "export", "prompt": "a", "temperature": 1e999}', "temperature|not JSON"),
    (b'{"model": "export", "prompt": "a", "max_tokens": 1' + b"0" * 400 + b"}", "max_tokens"),
    (b'{"model": "export", "prompt": "\\ud800"}', "surrogate|not JSON"),
    ([], "the body is not what it must be"),
    ({}, "model is missing"),
    ({"model": NAME}, "prompt is missing"),
    (GOOD | {"max_tokns": 3}, "no field 'max_tokns'; did you mean max_tokens"),
    (GOOD | {"prompt": 3}, "prompt"),
    (GOOD | {"prompt": None}, "prompt"),
    (GOOD | {"prompt": []}, "prompt must be"),
    (GOOD | {"prompt": ["a", 3]}, "prompt must be"),
    (GOOD | {"prompt": [[1], "a"]}, "prompt must be"),
    (GOOD | {"prompt": [True]}, "prompt must be"),
    (GOOD | {"prompt": [1.5]}, "prompt must be"),
    (GOOD | {"prompt": [256]}, "prompt has the id 256; ids are 0 to 255"),
    (GOOD | {"prompt": [-1]}, "prompt has the id -1"),
    (GOOD | {"prompt": "a\0b"}, "zero byte"),
    (GOOD | {"prompt": [1] * 10**6}, "prompt has 1000000 tokens"),
    (GOOD | {"prompt": ["a"] * 65}, "65 texts"),
    (GOOD | {"n": 65}, "65 texts"),
    (GOOD | {"n": 0}, "n is not"),
    (GOOD | {"n": 2**31 - 1}, "texts"),
    (GOOD | {"max_tokens": -1}, "max_tokens is not"),
    (GOOD | {"max_tokens": 4097}, "max_tokens is 4097"),
    (GOOD | {"max_tokens": "3"}, "max_tokens is not"),
    (GOOD | {"max_tokens": 2.5}, "max_tokens is not"),
    (GOOD | {"temperature": -0.1}, "temperature is -0.1, must be at least 0"),
    (GOOD | {"top_p": 0}, "top_p is 0"),
    (GOOD | {"top_p": 1.1}, "top_p is 1.1"),
    (GOOD | {"min_p": -1}, "min_p is -1"),
    (GOOD | {"repetition_penalty": 0.5}, "repetition_penalty is 0.5"),
    (GOOD | {"seed": -1}, "seed is not"),
    (GOOD | {"seed": 2**32}, "seed is not"),
    (GOOD | {"seed": 2**32 - 1, "n": 2}, "seed"),
    (GOOD | {"logprobs": 6}, "logprobs is 6"),
    (GOOD | {"logprobs": True}, "logprobs is not"),
    (GOOD | {"stop": ""}, "stop has 0 bytes"),
    (GOOD | {"stop": ["a"] * 5}, "stop has 5 texts"),
    (GOOD | {"stop": "a" * 1025}, "stop has 1025 bytes"),
    (GOOD | {"stop": [1]}, "stop is not"),
    (GOOD | {"best_of": 2}, "best_of other than n"),
    (GOOD | {"presence_penalty": 0.5}, "presence_penalty is not offered"),
    (GOOD | {"frequency_penalty": -0.5}, "frequency_penalty is not offered"),
    (GOOD | {"logit_bias": {"50": 1}}, "logit_bias is not offered"),
    (GOOD | {"suffix": "z"}, "suffix is not offered"),
    (GOOD | {"stream": "yes"}, "stream is not"),
    (GOOD | {"stream_options": {"include_usage": True}}, "stream_options is for stream"),
]


@pytest.mark.parametrize(("body", "message"), MALFORMED, ids=map(str, range(len(MALFORMED))))
def test_a_malformed_request_is_refused(server: Server, body: Any, message: str) -> None:
    """Status 400 and one sentence in OpenAI's form."""
    status, answer, _ = server.ask(body)
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert re.search(message, answer["error"]["message"])


def test_values_that_change_nothing_are_accepted(server: Server) -> None:
    """What clients send for every request."""
    nothing = {"presence_penalty": 0, "frequency_penalty": 0.0, "best_of": 1, "logit_bias": {}}
    nothing |= {"suffix": None, "stop": None, "user": "u", "logprobs": None, "stream": False}
    assert server.ask(GOOD | nothing)[0] == 200


def test_other_refusals(server: Server) -> None:
    """Another model, path, method, kind of body, host."""
    cases = [
        (404, "model_not_found", GOOD | {"model": "other"}, "/v1/completions", {}),
        (404, None, GOOD, "/v1/chat/completions", {}),
        (404, None, None, "/nowhere", {}),
        (405, None, None, "/v1/completions", {}),
        (405, None, GOOD, "/health", {}),
        (415, None, GOOD, "/v1/completions", {"Content-Type": "text/plain"}),
        (403, None, GOOD, "/v1/completions", {"Host": "example.org"}),
        (403, None, None, "/v1/models", {"Host": "localhost.example.org:80"}),
    ]
    for status, code, body, path, headers in cases:
        found, answer, _ = server.ask(body, path, **headers)
        assert (found, answer["error"]["code"]) == (status, code), path
        assert answer["error"]["message"]
    for host in ("localhost", f"LOCALHOST:{server.port}", "[::1]:80"):
        assert server.ask(None, "/health", Host=host)[0] == 200


def test_a_long_body_is_refused(small: Server) -> None:
    """With its length said or not, and its sender hears of it."""
    long = json.dumps(GOOD | {"user": "u" * 3_000_000}).encode()
    status, answer, _ = small.ask(long)
    assert (status, answer["error"]["message"]) == (413, "the body has more than 5000 bytes")
    connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=60)
    with contextlib.closing(connection):
        pieces = (long[i : i + 10000] for i in range(0, len(long), 10000))
        kind = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", pieces, kind, encode_chunked=True)
        assert connection.getresponse().status == 413


def test_a_body_that_does_not_come_is_refused(small: Server) -> None:
    """After --timeout seconds."""
    with socket.create_connection(("127.0.0.1", small.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_reads_nothing_is_left(small: Server) -> None:
    """After --timeout seconds, when no more of the stream fits on the way to it."""
    body = json.dumps(ENDLESS | {"n": 2, "logprobs": 5}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", small.port))
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        small.wait_until(busy=2)
        small.wait_until(busy=0)


def test_a_server_without_room_says_so_and_a_client_that_hangs_up_frees_its_place(
    small: Server,
) -> None:
    """Two texts are written, one request waits, the next is refused; then clients hang up."""
    with small.client() as client:
        first = client.completions.create(**ENDLESS, n=2)
        next(iter(first))
        small.wait_until(busy=2)
        waiting = threading.Thread(target=small.ask, args=[GOOD])
        waiting.start()
        small.wait_until(busy=3)
        status, answer, headers = small.ask(GOOD)
        assert (status, answer["error"]["code"]) == (503, "overloaded")
        assert int(headers["Retry-After"]) > 0
        with pytest.raises(openai.InternalServerError, match="busy"):
            client.completions.create(**GOOD)
        first.close()  # hangs up
        waiting.join(60)
        assert not waiting.is_alive()
        small.wait_until(busy=0)
        connection = http.client.HTTPConnection("127.0.0.1", small.port)
        connection.request(
            "POST",
            "/v1/completions",
            json.dumps(ENDLESS | {"stream": False}),
            {"Content-Type": "application/json"},
        )
        small.wait_until(busy=1)
        connection.close()  # before anything was answered
        small.wait_until(busy=0)
        assert small.ask(GOOD)[0] == 200


async def asked(
    server: Server, clients: int, seconds: float, tokens: int
) -> tuple[list[tuple[str, int, str]], int]:
    """Many clients at once, whole and streamed; every fifth hangs up in the middle.

    Returns:
      (prompt, seed, text) of all answers, and how many clients hung up.
    """
    answers: list[tuple[str, int, str]] = []
    left, end = 0, time.monotonic() + seconds

    async def one(client: Any, number: int) -> None:
        nonlocal left
        for turn in itertools.count():
            if turn and time.monotonic() > end:
                return
            seed, prompt = number * 100000 + turn, f"client {number}, turn {turn}: "
            arguments = {"model": NAME, "prompt": prompt, "seed": seed, "max_tokens": tokens}
            if number % 2 == 0:
                answer = await client.completions.create(**arguments)
                answers.append((prompt, seed, answer.choices[0].text))
                continue
            text, hangs_up = "", number % 5 == 0
            async with await client.completions.create(**arguments, stream=True) as stream:
                async for chunk in stream:
                    text += chunk.choices[0].text
                    if hangs_up:
                        left += 1
                        break
            if not hangs_up:
                answers.append((prompt, seed, text))

    options = {"max_retries": 0, "timeout": 120}
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", **options) as client:
        await asyncio.gather(*(one(client, number) for number in range(clients)))
    return answers, left


def test_fifty_clients_at_once(server: Server, model: runtime.Model) -> None:
    """Everyone gets the runtime's own text for the seed, though some hang up."""
    answers, left = asyncio.run(asked(server, clients=50, seconds=0, tokens=24))
    assert (len(answers), left) == (45, 5)
    for prompt, seed, text in answers:
        assert text == own_text(model, prompt.encode(), 24, temperature=1.0, seed=seed)
    server.wait_until(busy=0)


@pytest.mark.slow
def test_fifty_clients_for_a_minute(server: Server, model: runtime.Model) -> None:
    """The same over and over; a connection that is not used meanwhile stays open."""
    idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    idle.request("GET", "/health")
    idle.getresponse().read()
    answers, left = asyncio.run(asked(server, clients=50, seconds=60, tokens=100))
    idle.request("GET", "/health")
    assert json.loads(idle.getresponse().read())["status"] == "ok"
    idle.close()
    print(f"{len(answers)} answers, {left} clients hung up")
    assert len(answers) > 45 and left > 5
    for prompt, seed, text in answers:
        assert text == own_text(model, prompt.encode(), 100, temperature=1.0, seed=seed)
    server.wait_until(busy=0)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_server(unending: Path, number: signal.Signals) -> None:
    """With its exit code and one sentence, and clients that are answered hear of it."""
    server = Server(unending, "--max_tokens", "1000000000")
    with server.client() as client:
        chunks = client.completions.create(**ENDLESS, n=8)
        next(iter(chunks))
        stopped: list[str] = []
        ending = threading.Thread(target=lambda: stopped.append(server.stop(number)))
        ending.start()
        with pytest.raises(openai.APIError, match="the server is stopping"):
            for _ in chunks:
                pass
        ending.join(60)
    assert server.process.returncode == 128 + number
    (line,) = stopped[0].splitlines()
    assert line.endswith("; no request is answered any more")


def test_mistakes_on_the_command_line(
    export: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is one sentence: a number, a port in use, an address, no export, no package."""
    cases = [
        (["--concurrent", "0"], "--concurrent is 0, must be at least 1"),
        (["--queued", "-1"], "--queued is -1, must be at least 0"),
        (["--port", "65536"], "--port is 65536"),
        (["--port", str(server.port)], f"cannot listen at port {server.port} .* --port"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid is no address"),
        (["--export", "nowhere"], "nowhere is no export"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            command.main(["--export", str(export), *arguments])
    find = command.importlib.util.find_spec
    for missing in ("starlette", "uvicorn"):
        monkeypatch.setattr(
            command.importlib.util, "find_spec", lambda name, gone=missing: name != gone or None
        )
        with pytest.raises(UserError, match=rf"needs {missing}; pip install 'int-lm\[serve\]'"):
            command.main(["--export", str(export)])
    assert find("starlette")


def test_the_page_is_one_file(server: Server) -> None:
    """Nothing of it is elsewhere, and the browser is told so."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        response = connection.getresponse()
        page = response.read().decode()
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert re.findall(r"""(?:src|href)=(?!"data:)|https?://|@import|url\(""", page) == []


@pytest.mark.slow
def test_the_page_in_a_browser(server: Server, model: runtime.Model, unending: Path) -> None:
    """The text of a seed is streamed into it; it can be stopped; refusals are shown."""
    playwright = pytest.importorskip("playwright.sync_api")
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.goto(server.url)
        playwright.expect(page.locator("#model")).to_have_text(NAME)
        prompt = "<b>ä</b> "
        page.fill("#prompt", prompt)
        for seed in (1, 2):
            page.fill("#seed", str(seed))
            page.fill("#tokens", "50")
            page.click("#write")
            playwright.expect(page.locator("#state")).to_contain_text(f"seed {seed},")
            playwright.expect(page.locator("#state")).to_contain_text("a second")
            expected = own_text(model, prompt.encode(), 50, temperature=0.8, seed=seed)
            assert page.locator("#prompted").evaluate("e => e.textContent") == prompt
            assert page.locator("#written").evaluate("e => e.textContent") == expected
        page.fill("#tokens", "5000")
        page.click("#write")
        playwright.expect(page.locator("#state")).to_have_text(
            "max_tokens is 5000, this server writes at most 4096"
        )
        with running(unending, "--max_tokens", "1000000000") as other:
            page.goto(other.url)
            page.fill("#temperature", "0")
            page.fill("#tokens", "1000000000")
            page.click("#write")
            playwright.expect(page.locator("#state")).to_contain_text("writing, seed")
            other.wait_until(busy=1)
            page.click("#stop")
            playwright.expect(page.locator("#state")).to_contain_text("stopped, seed")
            other.wait_until(busy=0)
            assert set(problems) <= {f"{other.url}/v1/completions"}  # stopped
            page.goto("about:blank")
        browser.close()


PIECES = (b"", b"a", b"b", b"ab", b" ", b"\xc3", b"\xa4", b"\xe2\x82", b"\xac", b"\xf0\x9f\x98\x80")


def _of_pieces(ids: Any) -> bytes:
    return b"".join(PIECES[i] for i in ids)


TOKENS = st.lists(st.integers(1, len(PIECES) - 1), max_size=12)
STOPS = st.lists(st.sampled_from([b"ab", b"ba", b"a b", "ä".encode(), "€".encode()]), max_size=2)


@pytest.fixture(scope="module")
def spelling(model: runtime.Model) -> Spelling:
    return Spelling(model, _of_pieces)


@given(TOKENS, TOKENS, STOPS, st.booleans())
@example([4], [4, 1, 2, 1], [b"ab"], True)  # the first token of the stop string is held back
@example([], [7, 8, 1], ["€".encode()], True)
@example([7], [8, 5, 1, 7], [b"b"], True)
def test_pieces_are_the_text_cut_before_the_first_stop(
    spelling: Spelling, prompt: list[int], ids: list[int], stops: list[bytes], scored: bool
) -> None:
    """Whole characters only; every token at the character of its first byte; none cut away."""
    text = Text(spelling, 0, stops)
    text.echo(prompt, [(-1.0, {})] * len(prompt) if scored else [])
    pieces, drawn = [text.taken()], []
    for token in ids:
        drawn.append(token)
        text.add(token, (-float(len(drawn)), {}) if scored else None)
        pieces.append(text.taken())
        if text.finish_reason:
            break
    else:
        text.end("length")
        pieces.append(text.taken())
    written, before = _of_pieces(drawn), _of_pieces(prompt)
    cuts = [place for stop in stops if (place := written.find(stop)) >= 0]
    assert text.finish_reason == ("stop" if cuts else "length")
    whole = before + written[: min(cuts, default=len(written))]
    expected = whole.decode(errors="replace")
    assert "".join(piece.text for piece in pieces) == expected
    for end in itertools.accumulate(len(piece.text) for piece in pieces[:-1]):
        # what was sent is not changed by what comes later
        assert expected.startswith("".join(p.text for p in pieces)[:end])
    if not scored:
        assert not any(piece.tokens for piece in pieces)
        return
    begins = np.cumsum([0, *(len(PIECES[i]) for i in [*prompt, *drawn])])[:-1]
    kept = [i for i, begin in enumerate(begins) if i < len(prompt) or begin < len(whole)]
    shown = [token for piece in pieces for token in piece.tokens]
    assert len(shown) == len(kept)
    found = [offset for piece in pieces for offset in piece.offsets]
    assert found == [character_at(before + written, int(begins[i])) for i in kept]


def character_at(data: bytes, place: int) -> int:
    """The number of the character that a byte stands in, where faults become one each."""
    lengths: list[int] = []
    while data:
        try:
            whole, fault = data.decode(), 0
        except UnicodeDecodeError as error:
            whole, fault = data[: error.start].decode(), error.end - error.start
        lengths += [len(character.encode()) for character in whole] + [fault] * bool(fault)
        data = data[len(whole.encode()) + fault :]
    return int(np.searchsorted(np.cumsum(lengths), place, side="right"))


def test_pieces_of_a_vocabulary(tmp_path: Path) -> None:
    """The tokens of a SentencePiece model are shown as their text, and spaces are spaces."""
    corpus = "blue é €uro bläulich\n".encode() * 20
    tokenizer = train.train([corpus], vocab_size=280, model_type="bpe")
    run = tiny_run(280, model=presets.egg(width=16, layers=1))
    model = runtime.load(export_tiny_run(run, tmp_path))
    served = Served(NAME, 280, tokenizer.encode)
    body = GOOD | {"prompt": "blue é ☃", "echo": True, "logprobs": 2, "seed": 3}
    wanted = parse(json.dumps(body).encode(), served, Limits())
    job, batch = Job(wanted, Spelling(model, tokenizer.decode)), Batch(model)
    batch.add(job.lanes())
    while batch.lanes:
        batch.step()
    ids = [*wanted.prompts[0]]
    ids += own_ids(model, ids, 16, temperature=1.0, seed=3)
    piece = job.texts[0].taken()
    assert piece.text == tokenizer.decode(ids).decode(errors="replace")
    assert len(piece.tokens) == len(ids) < len(piece.text)
    assert "blue" in "".join(piece.tokens[:3]) and "bytes:\\xe2" in piece.tokens
    for token, offset in zip(piece.tokens, piece.offsets, strict=True):
        assert token.startswith("bytes:") or piece.text[offset:].startswith(token)


@pytest.fixture
def job(model: runtime.Model) -> Callable[..., Job]:
    """Makes jobs."""

    def make(**body: Any) -> Job:
        served = Served(NAME, 256, ByteTokenizer().encode)
        wanted = parse(json.dumps(GOOD | body).encode(), served, Limits())
        return Job(wanted, Spelling(model, ByteTokenizer().decode))

    return make


def test_lanes_that_come_and_go_do_not_change_one_another(
    model: runtime.Model, job: Callable[..., Job]
) -> None:
    """Texts that begin, end and are given up at random times are each the runtime's own."""
    chance, batch, jobs = random.Random(1), Batch(model), []
    for number in range(40):
        jobs.append(
            job(
                prompt="x" * chance.randrange(9),
                seed=number,
                n=chance.randrange(1, 4),
                max_tokens=chance.randrange(30),
            )
        )
        batch.add(jobs[-1].lanes())
        for _ in range(chance.randrange(5)):
            batch.step()
        if number % 7 == 0:
            jobs[chance.randrange(len(jobs))].given_up = True
    while batch.lanes:
        batch.step()
    ended = [each for each in jobs if not each.given_up]
    assert len(ended) > 30
    for each in ended:
        for text, sampler in zip(each.texts, each.wanted.samplers, strict=True):
            prompt, tokens = each.wanted.prompts[0], each.wanted.tokens
            expected = own_text(model, prompt, tokens, temperature=1.0, seed=sampler.seed)
            assert text.taken().text == expected


class Failing:
    """A model that fails once."""

    def __init__(self, model: runtime.Model) -> None:
        self._model, self.config, self.failed = model, model.config, False
        self.initial_state = model.initial_state

    def step(self, state: Any, tokens_P: np.ndarray, *, owned: bool) -> Any:
        if not self.failed:
            self.failed = True
            raise MemoryError
        return self._model.step(state, tokens_P, owned=owned)


def test_a_model_that_fails_does_not_end_the_server(
    model: runtime.Model, job: Callable[..., Job], capfd: pytest.CaptureFixture
) -> None:
    """What was computed is refused with status 500; later requests are answered."""
    moved = threading.Event()
    worker = Worker(Failing(model), Limits(), lambda jobs: moved.set())  # type: ignore[arg-type]
    first, second = job(), job()
    worker.submit(first)
    assert moved.wait(60)
    assert isinstance(first.refusal, RefusalError) and first.refusal.status == 500
    moved.clear()
    worker.submit(second)
    assert moved.wait(60)
    assert second.refusal is None and second.left == 0
    worker.stop()
    with pytest.raises(RefusalError, match="stopping"):
        worker.submit(job())
    assert "MemoryError" in capfd.readouterr().err
