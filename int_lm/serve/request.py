"""The body of a request for completions, checked."""

import dataclasses
import secrets
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from int_lm.errors import UserError, nearest
from int_lm.runtime import Sampler
from int_lm.serve.refusal import RefusalError

TOP_LOGPROBS_MAX, STOPS_MAX, STOP_BYTES_MAX, SEEDS = 5, 4, 1024, 2**32

Count = Annotated[int, Meta(ge=0, lt=2**31)]
Number = Annotated[float, Meta(ge=-(2.0**64), le=2.0**64)]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Attributes:
      concurrent: texts that are computed at once; also the most that one request asks for.
      queued: requests that wait until there is room.
      max_tokens: of one text.
      max_prompt_tokens: of all prompts of a request together.
      max_body_bytes: of a request.
      timeout: seconds that a client has to send a request, or to take a piece of the response.
    """

    concurrent: int = 64
    queued: int = 64
    max_tokens: int = 4096
    max_prompt_tokens: int = 32768
    max_body_bytes: int = 1 << 22
    timeout: int = 60


@dataclasses.dataclass(frozen=True)
class Served:
    """The model that is served, as far as requests are concerned.

    Attributes:
      name: that requests give as `model`.
      vocab_size: V.
      encode: ids of UTF-8 text.
    """

    name: str
    vocab_size: int
    encode: Callable[[bytes], np.ndarray]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`stream_options` of the interface."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of a request. The last four are not OpenAI's; they are those of `Sampler`."""

    model: str
    prompt: str | list[Any]
    best_of: Count | None = None
    echo: bool | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    logprobs: Count | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    presence_penalty: Number | None = None
    seed: Annotated[int, Meta(ge=0, lt=SEEDS)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    suffix: str | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    user: str | None = None
    top_k: Count | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    repetition_window: Count | None = None


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A request that can be answered.

    Attributes:
      prompts: ids of each prompt.
      samplers: one for each text of a prompt.
      tokens: the largest number of ids of a text.
      stops: texts end before these.
      logprobs: how many of the likeliest tokens are shown at each place; None for no likelihoods.
      echo: whether a text begins with its prompt.
      stream: whether pieces are sent as soon as they are there.
      usage: whether a stream ends with the numbers of tokens.
    """

    prompts: list[list[int]]
    samplers: list[Sampler]
    tokens: int
    stops: list[bytes]
    logprobs: int | None
    echo: bool
    stream: bool
    usage: bool

    @property
    def size(self) -> int:
        """The number of texts."""
        return len(self.prompts) * len(self.samplers)


def parse(data: bytes, served: Served, limits: Limits) -> Wanted:
    """Read the body of a request.

    Args:
      data: JSON.
      served: the model.
      limits: what is accepted.

    Raises:
      RefusalError: the body is malformed, or asks for what this server does not do.
    """
    body = _decoded(data)
    check_model(body.model, served)
    _refuse_what_is_not_offered(body)
    tokens = 16 if body.max_tokens is None else body.max_tokens
    if tokens > limits.max_tokens:
        raise RefusalError(
            400,
            f"max_tokens is {tokens}, this server writes at most {limits.max_tokens}",
            "max_tokens",
        )
    if body.logprobs is not None and body.logprobs > TOP_LOGPROBS_MAX:
        raise RefusalError(
            400, f"logprobs is {body.logprobs}, must be at most {TOP_LOGPROBS_MAX}", "logprobs"
        )
    prompts, choices = _prompts(body.prompt), 1 if body.n is None else body.n
    if len(prompts) * choices > limits.concurrent:
        raise RefusalError(
            400,
            f"the request asks for {len(prompts) * choices} texts, this server writes at most "
            f"{limits.concurrent} at once",
            "n" if choices > 1 else "prompt",
        )
    samplers = _samplers(body, choices)
    return Wanted(
        prompts=_encoded(prompts, served, limits),
        samplers=samplers,
        tokens=tokens,
        stops=_stops(body.stop),
        logprobs=body.logprobs,
        echo=bool(body.echo),
        stream=bool(body.stream),
        usage=bool(body.stream_options and body.stream_options.include_usage),
    )


def check_model(name: str, served: Served) -> None:
    """Refuse another name than that of the model.

    Raises:
      RefusalError: it is another.
    """
    if name != served.name:
        message = f"there is no model {name[:100]!r} here; this server has {served.name!r}"
        raise RefusalError(404, message, "model", "model_not_found")


def _decoded(data: bytes) -> Body:
    """The body as fields of the right types.

    Raises:
      RefusalError: it is not JSON, or a field is unknown or of another type.
    """
    try:
        return msgspec.json.decode(data, type=Body)
    except msgspec.ValidationError as error:
        message = str(error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusalError(400, f"the body is not JSON that can be read: {error}") from error
    reason, _, place = message.partition(" - at `$")
    name = place.strip("`").removeprefix(".").partition(".")[0].partition("[")[0]
    found = reason.partition("unknown field `")[2].strip("`")
    if found:
        known = [field.name for field in msgspec.structs.fields(Body)]
        hint = nearest(found, known, otherwise="; leave it out")
        raise RefusalError(400, f"there is no field {found[:100]!r}{hint}", found[:100])
    missing = reason.partition("required field `")[2].strip("`")
    if missing:
        raise RefusalError(400, f"{missing} is missing", missing)
    where = name or "the body"
    raise RefusalError(400, f"{where} is not what it must be: {_lowered(reason)}", name or None)


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _refuse_what_is_not_offered(body: Body) -> None:
    """Refuse fields that would change the text in a way that this server does not know.

    Raises:
      RefusalError: one of them is used.
    """
    choices = 1 if body.n is None else body.n
    if body.best_of not in (None, choices):
        raise RefusalError(
            400, "best_of other than n is not offered; ask for n texts and choose", "best_of"
        )
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(body, name):
            raise RefusalError(
                400, f"{name} is not offered; use repetition_penalty, 1 to 100", name
            )
    if body.suffix:
        raise RefusalError(400, "suffix is not offered: the model only continues text", "suffix")
    if body.logit_bias:
        raise RefusalError(400, "logit_bias is not offered; leave it out", "logit_bias")
    if body.stream_options and not body.stream:
        raise RefusalError(400, "stream_options is for stream: true", "stream_options")


def _samplers(body: Body, choices: int) -> list[Sampler]:
    """One sampler for each text of a prompt, with consecutive seeds.

    Raises:
      RefusalError: a setting is outside its range.
    """
    first = secrets.randbelow(SEEDS - choices) if body.seed is None else body.seed
    if first + choices > SEEDS:
        raise RefusalError(400, f"seed + n is above 2^32: text i has the seed {first} + i", "seed")
    named: dict[str, Any] = {
        "temperature": 1.0
    }  # of OpenAI; the other defaults are those of `Sampler`
    for field in dataclasses.fields(Sampler):
        value = getattr(body, field.name)
        if value is not None:
            named[field.name] = value
    try:
        return [Sampler(**named | {"seed": first + i}) for i in range(choices)]
    except ValueError as error:
        raise RefusalError(400, str(error), str(error).partition(" ")[0]) from error


def _stops(stop: str | list[str] | None) -> list[bytes]:
    """The stop strings as UTF-8.

    Raises:
      RefusalError: there are too many, or one is empty or too long.
    """
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > STOPS_MAX:
        raise RefusalError(
            400, f"stop has {len(stops)} texts, at most {STOPS_MAX} are read", "stop"
        )
    encoded = [_utf8(text, "stop") for text in stops]
    for text in encoded:
        if not 0 < len(text) <= STOP_BYTES_MAX:
            raise RefusalError(
                400, f"a text of stop has {len(text)} bytes, must be 1 to {STOP_BYTES_MAX}", "stop"
            )
    return encoded


def _prompts(prompt: str | list[Any]) -> list[str | list[int]]:
    """The prompts of a request: a text, several, the ids of one, or of several.

    Raises:
      RefusalError: it is none of these.
    """
    if isinstance(prompt, str):
        return [prompt]
    if prompt and all(type(token) is int for token in prompt):
        return [prompt]
    of_ids = all(type(ids) is list and all(type(token) is int for token in ids) for ids in prompt)
    if not prompt or not (of_ids or all(isinstance(text, str) for text in prompt)):
        raise RefusalError(
            400,
            "prompt must be a text, a list of texts, a list of ids, or a list of these",
            "prompt",
        )
    return prompt


def _encoded(prompts: list[str | list[int]], served: Served, limits: Limits) -> list[list[int]]:
    """The ids of prompts.

    Raises:
      RefusalError: a text has a zero byte, an id is outside the vocabulary, or there are too many.
    """
    encoded, total = [], 0
    for prompt in prompts:
        if isinstance(prompt, str):
            text = _utf8(prompt, "prompt")
            if 0 in text:
                raise RefusalError(
                    400, "prompt has a zero byte, which stands between texts", "prompt"
                )
            try:
                ids = served.encode(text).tolist()
            except UserError as error:
                raise RefusalError(400, f"prompt: {error}", "prompt") from error
        else:
            ids = prompt
            wrong = next((token for token in ids if not 0 <= token < served.vocab_size), None)
            if wrong is not None:
                raise RefusalError(
                    400,
                    f"prompt has the id {wrong}; ids are 0 to {served.vocab_size - 1}",
                    "prompt",
                )
        encoded.append(ids)
        total += len(ids)
    if total > limits.max_prompt_tokens:
        raise RefusalError(
            400,
            f"prompt has {total} tokens, this server reads at most {limits.max_prompt_tokens}",
            "prompt",
            "context_length_exceeded",
        )
    return encoded


def _utf8(text: str, name: str) -> bytes:
    """The bytes of a text.

    Raises:
      RefusalError: it has half of a surrogate pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise RefusalError(400, f"{name} has half of a surrogate pair", name) from error
