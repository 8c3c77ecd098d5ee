"""The model `int_lm` of lm-evaluation-harness: a run or an export. Importing this registers it.

    lm_eval.simple_evaluate(model="int_lm", model_args={"export": "exports/book"}, tasks=[...])

A request's context and continuation are encoded apart from each other, as `eval.py --last_word`
does. (`lm_eval`'s own `TemplateLM` encodes them together and cuts the ids at the length of the
context's own. With pieces of several characters, the continuation may then be left without an id,
and a sum of nothing is the best there is.) docs/evaluation.md says what else is counted.
"""

import collections
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from int_lm import export as export_module, hub, plugins, programs, progress
from int_lm.errors import UserError, counted, say
from int_lm.harness import lanes, likelihoods, writing
from int_lm.runtime import Sampler

UNIT = math.log(2) / 2**16  # nats of 2^-16 bit
TOKENS = 256  # of a text that is written, if the task does not say
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
OF_SAMPLER = ("top_k", "top_p", "min_p", "repetition_penalty", "seed")
Pair = tuple[bytes, bytes, bool]  # context, continuation, whether the end counts


@register_model("int_lm")
class IntLM(LM):
    """A model of int_lm for `lm_eval`; see the module."""

    def __init__(
        self,
        export: str | Path | None = None,
        run: str | Path | None = None,
        step: int | None = None,
        plugin: str | Sequence[str] = (),
        end: bool = True,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Load the model.

        Args:
          export: the directory of an export, or `hf://OWNER/NAME@REVISION`; NumPy reads it.
          run: a run directory, which JAX reads; give one of the two.
          step: which checkpoint of a run; None for the newest one.
          plugin: code that the run or export names and that you trust, each as "module:name".
          end: whether a text that has no context is a document, whose end counts, as in eval.py.
          batch_size: ignored, as `max_batch_size` is: the lanes that are read side by side change
            no bit.
          max_batch_size: ignored.
          device: ignored; `lm_eval` names one always, and JAX chooses its own.

        Raises:
          UserError: not exactly one of `export` and `run` is given, or it cannot be read.
        """
        super().__init__()
        if (export is None) == (run is None):
            raise UserError("give either export=DIR or run=DIR in model_args")
        if export is not None and step is not None:
            raise UserError("step chooses a checkpoint of a run; an export holds one step")
        plugins.trust(*([plugin] if isinstance(plugin, str) else plugin))
        self._end = bool(end)
        if export is not None:
            export = hub.local(str(export))
            model = export_module.load(export)
            identity, self._lanes = model.config["tokenizer"], lanes.Numpy(model)
            self._step, self._hash = model.config["step"], model.config["weights_hash"]
        else:
            from int_lm import run as run_module  # imports JAX, which an export does not need
            from int_lm.model import hashing

            opened = run_module.open_run(str(run), step, say=say)
            identity, self._lanes = opened.tokenizer, lanes.Jax(opened)
            self._step, self._hash = opened.step, hashing.weights_hash(opened.weights)
        programs.make_importable()
        import tokenization

        self._tokenizer = tokenization.load_own(str(export or run), identity)

    def get_model_info(self) -> dict[str, Any]:
        """What `lm_eval` writes about the model beside its results."""
        return {"weights_hash": self._hash, "step": self._step, "end": self._end}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding writes it) of every continuation.

        Raises:
          UserError: a continuation is empty, or a text cannot be encoded.
        """
        found = self._measured([self._pair(*_arguments(request)) for request in requests])
        results = [(units * UNIT, greedy) for units, greedy in found]
        return self._kept("loglikelihood", requests, results)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-likelihood in nats of every document, as eval.py counts it.

        A document without text is left out by eval.py; here it has 0 nats.

        Raises:
          UserError: a text cannot be encoded.
        """
        texts = [_utf8(_arguments(request)[0], "a document") for request in requests]
        found = iter(self._measured([(b"", text, self._end) for text in texts if text]))
        results = [next(found)[0] * UNIT if text else 0.0 for text in texts]
        return self._kept("loglikelihood_rolling", requests, results)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The text that follows every context, up to a stop string or to the end of the document.

        Where equal requests ask for draws, each gets the next seed.

        Raises:
          UserError: an argument is outside its range, or a text cannot be encoded.
        """
        prompts = self._encoded(
            [_utf8(_arguments(request)[0], "a context") for request in requests]
        )
        wishes: list[writing.Wish] = []
        seen: collections.Counter[str] = collections.Counter()
        index_of: dict[str, int] = {}
        places = []
        for request, prompt in zip(requests, prompts, strict=True):
            context, arguments = _arguments(request)
            settings, tokens, stops = _settings(arguments)
            key = repr((context, sorted(settings.items()), tokens, stops))
            if settings["temperature"]:  # equal requests are draws of their own
                settings["seed"] = settings.get("seed", 0) + seen[key]
                seen[key] += 1
                key += f" {settings['seed']}"
            if key not in index_of:
                index_of[key] = len(wishes)
                wishes.append(writing.Wish(prompt, _sampler(settings), tokens, stops))
            places.append(index_of[key])
        written: dict[int, str] = {}
        with progress.bar("writing", None) as update:
            for index, text in writing.texts(
                self._lanes, wishes, self._tokenizer.decode, progress=update
            ):
                written[index] = text.decode(errors="replace")
        results = [written[place] for place in places]
        return self._kept("generate_until", requests, results)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """No template: "".

        Raises:
          UserError: one is asked for.
        """
        if chat_template:
            raise UserError("models of int_lm have no chat template; leave --apply_chat_template")
        return ""

    def _pair(self, context: str, continuation: str) -> Pair:
        """The bytes of a request. Spaces at the context's end go to the continuation, as everywhere
        in `lm_eval`.

        Raises:
          UserError: the continuation is empty, or a text cannot be encoded.
        """
        if not continuation:
            raise UserError(
                f"a continuation of {context[-40:]!r} is empty, which would be likelier than any "
                "text; give every choice of the task a text"
            )
        bare = context.rstrip()
        return (
            _utf8(bare, "a context"),
            _utf8(context[len(bare) :] + continuation, "a continuation"),
            self._end and not context,
        )

    def _encoded(self, texts: Sequence[bytes]) -> list[Any]:
        """The ids of every text; of equal texts the same array."""
        distinct = list(dict.fromkeys(texts))
        ids = dict(zip(distinct, self._tokenizer.encode_all(distinct), strict=True))
        return [ids[text] for text in texts]

    def _measured(self, pairs: Sequence[Pair]) -> list[tuple[int, bool]]:
        """(log2-likelihood in units of 2^-16 bit, whether greedy) of pairs; each is read once."""
        distinct = list(dict.fromkeys(pairs))
        contexts = list(dict.fromkeys(context for context, _, _ in distinct))
        number = {context: index for index, context in enumerate(contexts)}
        encoded = self._encoded([text for _, text, _ in distinct])
        continuations = [
            likelihoods.Continuation(number[context], ids, end)
            for (context, _, end), ids in zip(distinct, encoded, strict=True)
        ]
        ids = self._encoded(contexts)
        total = sum(map(len, ids)) + sum(len(each.ids) + each.end for each in continuations)
        with progress.bar("evaluating", total) as update:
            units, greedy = likelihoods.measured(self._lanes, ids, continuations, update)
        found = dict(zip(distinct, zip(units.tolist(), greedy.tolist(), strict=True), strict=True))
        return [found[pair] for pair in pairs]

    def _kept(self, kind: str, requests: list[Instance], results: list[Any]) -> list[Any]:
        """The results, told to the harness's cache (`--use_cache`)."""
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial(kind, request.args, result)
        return results


def _utf8(text: str, what: str) -> bytes:
    """The bytes of a text; `what` names it in an error.

    Raises:
      UserError: it has a zero byte, or characters that UTF-8 does not have.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} of a task, {text[:40]!r}, is no UTF-8; mend the task") from error
    if 0 in data:
        raise UserError(
            f"{what} of a task, {text[:40]!r}, has a zero byte, which stands between documents; "
            "mend the task"
        )
    return data


def _arguments(request: Instance) -> tuple[Any, ...]:
    return request.args  # its type says less than it holds


_told: set[str] = set()  # arguments that were said to have no meaning


def _settings(arguments: dict[str, Any]) -> tuple[dict[str, Any], int, tuple[bytes, ...]]:
    """(fields of `Sampler`, the largest number of tokens, the stop strings) of a request."""
    known = {*LENGTHS, *OF_SAMPLER, "until", "do_sample", "temperature"}
    for name in sorted(arguments.keys() - known - _told):
        _told.add(name)
        say(f"the generation argument {name} means nothing to int_lm and is ignored")
    until = arguments.get("until") or []
    stops = [until] if isinstance(until, str) else until
    lengths = [arguments[name] for name in LENGTHS if arguments.get(name) is not None]
    tokens = int(lengths[0]) if lengths else TOKENS
    if tokens < 1:
        raise UserError(f"a task asks for {counted(tokens, 'token')}; at least 1 can be written")
    settings = {name: arguments[name] for name in OF_SAMPLER if arguments.get(name) is not None}
    drawn = arguments.get("do_sample")
    temperature = arguments.get("temperature")
    if temperature is None:
        temperature = 1.0 if drawn else 0.0
    settings["temperature"] = 0.0 if drawn is False else float(temperature)
    return settings, tokens, tuple(_utf8(stop, "a stop string") for stop in stops if stop)


def _sampler(settings: dict[str, Any]) -> Sampler:
    try:
        return Sampler(**settings)
    except ValueError as error:
        raise UserError(f"generation argument {error}") from error
