"""Train, load, measure, sample and export models from Python: the commands as functions.

    model = int_lm.train("quickstart", data={"path": "book.txt"}, run={"dir": "runs/book"})
    model.evaluate(["some text"])["bits_per_byte"]
    model.export("exports/book")

JAX computes the model of a run, NumPy the model of an export. The numbers and the text are the
same. JAX is not imported for an export. Mistakes raise `UserError`: one sentence that says what is
wrong, where, and what to do next.
"""

import contextlib
import numbers
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from int_lm import (
    config as config_module,
    export as export_module,
    hub,
    plugins,
    programs,
    runtime,
    subject,
    switches,
)
from int_lm.config import Config, command_line
from int_lm.errors import UserError, in_python, nearest, require

if TYPE_CHECKING:
    import numpy as np

Text = str | bytes  # bytes are UTF-8


@contextlib.contextmanager
def _for_python() -> Iterator[None]:
    """Sentences that name flags of commands name fields and arguments instead."""
    try:
        switches.check()
        yield
    except UserError as error:
        raise UserError(in_python(str(error))) from error


class Model:
    """The model of a run's checkpoint, or of an export. `load` and `train` make it.

    Attributes:
      path: the directory of the run or the export.
      step: number of updates that the weights have had.
      tokenizer: the `tokenization.Tokenizer`: `encode` turns bytes into ids, `decode` ids into
        bytes.
    """

    def __init__(self, path: Path, subject: subject.Subject):
        """Make the model.

        Args:
          path: the directory of the run or the export.
          subject: what `int_lm.subject` opened.
        """
        self.path = path
        self.step: int = subject.step
        self.tokenizer: Any = subject.tokenizer
        self._subject = subject

    def __repr__(self) -> str:
        return f"<int_lm model of {self.path} at step {self.step}>"

    @_for_python()
    def evaluate(self, texts: Sequence[Text]) -> dict[str, Any]:
        """How well the model predicts texts: the figures of `eval.py --text --json`.

        Whether they were trained on, it does not say: only the command looks for the run's shards.

        Args:
          texts: documents. Each is read from a fresh state, and its end is predicted, too.

        Returns:
          bits_per_byte: code length of all texts in bits, divided by the bytes of their UTF-8.
          interval_95: 95 % interval of it over documents; None for a single document.
          documents: number of texts.
          bytes: bytes of their UTF-8.
          tokens: number of tokens, with a separator for each document.
          token_perplexity: 2 to the mean number of bits of a token.
          byte_perplexity: 2 to the bits per byte.
          log2_likelihood_units: the log2-likelihood, an integer in units of 2^-16 bit.
          baselines: bits per byte of the same bytes by unigram, bigram, gzip, xz, zstd and, where
            the package pyppmd is installed, ppmd.
          sources: these figures by source.
          text: what is known of the texts; `sha256` is their digest.

        Raises:
          UserError: there is no text, or a text is empty, is not UTF-8 or has a zero byte.
        """
        documents = programs.load("data.documents")
        of_texts = [
            documents.Document(f"text {number}", text)
            for number, text in enumerate(_checked(texts))
        ]
        text = programs.load("data.corpus").text_figures("texts given", of_texts, None)
        return programs.load("eval").figures_of(self._subject, {"text": of_texts}, text)

    @_for_python()
    def log2_likelihoods(self, texts: Sequence[Text]) -> "np.ndarray":
        """The exact log2-likelihood of every text: int64 [texts], in units of 2^-16 bit.

        It includes the separator that ends the text.

        Args:
          texts: as for `evaluate`.

        Raises:
          UserError: as `evaluate`.
        """
        ids = self.tokenizer.encode_all(_checked(texts))
        return self._subject.log2_likelihoods(ids, lambda tokens: None)

    @_for_python()
    def sample(
        self,
        prompt: Text = "",
        *,
        tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: bool = True,
    ) -> Any:
        """The text that the model writes after `prompt`.

        The same arguments give the same text on every machine.

        Args:
          prompt: text to continue.
          tokens: the largest number of tokens to add, at least 1.
          temperature: 1 for the model's own distribution, 0 for always the likeliest token.
          top_k: draw among the k likeliest tokens only (0: all).
          top_p: draw among the fewest likeliest tokens that have this probability together.
          seed: of the draws, 0 to 2^32 - 1.
          stop: whether to end where the model ends its text; otherwise another text begins there.

        Returns:
          The continuation, without the prompt. It is bytes if the prompt is bytes; otherwise a str,
          in which bytes that are not UTF-8 become replacement characters.

        Raises:
          UserError: a number is outside its range, an argument has another type, or the prompt is
            not UTF-8 or has a zero byte.
        """
        tokens, top_k, seed = map(_whole, ("tokens", "top_k", "seed"), (tokens, top_k, seed))
        require(tokens >= 1, f"tokens is {tokens}, must be at least 1")
        for name, value in (("temperature", temperature), ("top_p", top_p)):
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            require(is_number, f"{name} is {value!r}, must be a number")
        require(isinstance(stop, bool), f"stop is {stop!r}, must be True or False")
        try:
            sampler = runtime.Sampler(temperature, top_k, top_p, seed)
        except ValueError as error:
            raise UserError(str(error)) from error
        ids = self.tokenizer.encode(_bytes(prompt, "the prompt")).tolist()
        drawn = runtime.generate(self._subject.reader(), ids, sampler, tokens=tokens, stop=stop)
        written = self.tokenizer.decode(list(drawn))
        return written if isinstance(prompt, bytes) else written.decode(errors="replace")

    @_for_python()
    def export(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model of a run as a directory that runs with NumPy alone; see `int_lm.export`.

        Args:
          out: the directory to make.
          overwrite: whether to replace an export at `out`.

        Returns:
          `out`, which `load` reads.

        Raises:
          UserError: this model is an export, `out` exists, or the file system refused.
        """
        _path(out)
        run = self._subject.run
        if run is None:
            raise UserError(f"{self.path} is an export already; copy the directory instead")
        return export_module.export_run(run, self.path, out, overwrite=overwrite)


@_for_python()
def load(path: str | Path, step: int | None = None, *, trusted: Sequence[str] = ()) -> Model:
    """The model in a run directory or in an export.

    Args:
      path: the directory, or `hf://OWNER/NAME@REVISION` for an export on the Hugging Face hub.
      step: which checkpoint of a run; None for the newest one that is not damaged.
      trusted: code outside int_lm that the run or export names and that may be imported, each as
        "module:name".

    Raises:
      UserError: `path` holds no run and no export, or it is damaged; `step` is given for an export;
        or the hub does not give the export.
    """
    _path(path)
    require(
        not isinstance(trusted, str) and isinstance(trusted, Sequence),
        f"trusted is {trusted!r}; give a list of names such as ['my_package.gru:GRU']",
    )
    step = None if step is None else _whole("step", step)
    path = hub.local(path)
    plugins.trust(*trusted)
    programs.make_importable()
    if (path / "checkpoints").is_dir():
        return Model(path, subject.open_run(path, step))
    if not (path / runtime.CONFIG_FILE).is_file():
        raise UserError(
            f"{path} holds neither a run nor an export; name the directory that training or an "
            "export wrote"
        )
    if step is not None:
        raise UserError(f"{path} is an export, which holds one step; leave out step")
    return Model(path, subject.open_export(path))


@_for_python()
def train(
    config: Config | Mapping[str, Any] | str | Path | None = None, **overrides: Mapping[str, Any]
) -> Model:
    """Train, or go on with, the run that a configuration describes, as `train.py` does.

    A run directory that holds a checkpoint is resumed, bit for bit. For a finished run, a message
    is printed and no step is trained. Progress is printed. If this is called in the main thread,
    SIGINT and SIGTERM save and stop at the next step; then KeyboardInterrupt is raised.

    Args:
      config: a `Config`; nested values such as {"run": {"steps": 100}}; a YAML file; the name of a
        shipped configuration such as "quickstart"; or None for the defaults.
      **overrides: values of single fields by section: run={"steps": 100}, data={"path": "a.txt"}.

    Returns:
      The model at the newest checkpoint. If the run has several processes, all of them must see
      its directory.

    Raises:
      UserError: a mistake in the configuration, the text or the run directory.
      KeyboardInterrupt: a signal stopped the run before its end; the same call goes on with it.
    """
    settings = config_module.validate(_configuration(config, overrides))
    plugins.trust_settings(settings)
    programs.load("train").train(settings)
    model = load(settings.run.dir)
    if not _is_whole(model):
        raise KeyboardInterrupt(f"training stopped after step {model.step}; call it again")
    return model


def _is_whole(model: Model) -> bool:
    """Whether the run was evaluated at the model's step, as it is at its end."""
    from int_lm import run
    from int_lm.files import untrusted

    with contextlib.suppress(OSError, untrusted.MalformedError):
        found = untrusted.read_json(run.Paths(model.path).evaluation, untrusted.METADATA_BYTES)
        return isinstance(found, dict) and found.get("step") == model.step
    return False


def _configuration(config: Any, overrides: Mapping[str, Any]) -> Config:
    """The configuration that the arguments of `train` describe, not yet validated.

    Raises:
      UserError: an unknown section or field, or a wrong type.
    """
    if isinstance(config, str | Path):
        config = command_line.configuration(str(config))
    elif not isinstance(config, Config):
        require(
            config is None or isinstance(config, Mapping),
            f"the configuration is {config!r}; give a Config, nested values, a file or a name",
        )
        config = config_module.from_dict({} if config is None else config, "the configuration")
    where, flags = "the arguments of train", {}
    for section, fields in overrides.items():
        if section not in config_module.SECTIONS:
            suggestion = nearest(section, list(config_module.SECTIONS))
            raise UserError(f"unknown section {section!r} in {where}{suggestion}")
        if not isinstance(fields, Mapping):
            raise UserError(
                f"{section} is {fields!r}; give fields by section, as in run={{'steps': 100}}"
            )
        flags |= {f"{section}.{field}": value for field, value in fields.items()}
    return command_line.overridden(config, flags, where)


def _checked(texts: Sequence[Text]) -> list[bytes]:
    """The texts as UTF-8 bytes.

    Raises:
      UserError: there is no text, or a text is empty, is not UTF-8 or has a zero byte.
    """
    if isinstance(texts, str | bytes):
        raise UserError("texts is a single text; give a list of texts")
    if not isinstance(texts, Iterable):
        raise UserError(f"texts is {texts!r}; give a list of texts")
    checked = [_bytes(text, f"text {number}") for number, text in enumerate(texts)]
    for number, text in enumerate(checked):
        require(len(text) > 0, f"text {number} is empty; leave it out")
    require(len(checked) > 0, "there is no text to read; give at least one")
    return checked


def _bytes(text: Text, what: str) -> bytes:
    """The UTF-8 bytes of a text; `what` names it in an error.

    Raises:
      UserError: it is no text, is not UTF-8, or has a zero byte.
    """
    require(
        isinstance(text, str | bytes | bytearray),
        f"{what} is {text!r}, which is no text; give str or bytes",
    )
    try:
        data = text.encode() if isinstance(text, str) else bytes(text)
        data.decode()
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        raise UserError(f"{what} is not UTF-8 ({error.reason}); decode it first") from error
    if 0 in data:
        raise UserError(f"{what} has a zero byte, which stands between texts; cut it there")
    return data


def _path(path: str | Path) -> None:
    """Refuse what names no file (`UserError`)."""
    require(isinstance(path, str | Path), f"the path is {path!r}, must be a str or a Path")


def _whole(name: str, value: int) -> int:
    """An integer of Python, of any type of integers.

    Raises:
      UserError: it is none.
    """
    refusal = f"{name} is {value!r}, must be an integer"
    require(not isinstance(value, bool), refusal)
    try:
        return operator.index(value)
    except TypeError as error:
        raise UserError(refusal) from error
