"""The model card of an export: sizes, training settings, measurements and use of the model."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from int_lm import config, plugins
from int_lm.errors import counted
from int_lm.files import untrusted

if TYPE_CHECKING:
    from int_lm.run import Run

_BASELINES = {
    "unigram": "unigram entropy of the same bytes",
    "bigram": "bigram entropy of the same bytes",
    "gzip": "gzip -9",
    "xz": "xz -9e",
    "zstd": "zstd -19",
    "ppmd": "PPMd, variant H, order 12",
    "zstd_told": "zstd -19 with the training text as its dictionary",
    "ppmd_told": "PPMd after the training text",
}
_SOURCES = {
    "stdlib": "the Python standard library's sources",
    "text": "text files",
    "json": "JSON lines",
    "parquet": "Parquet files",
    "hub": "a dataset of the Hugging Face hub",
}

_INTRODUCTION = """\
A recurrent language model whose weights and activations are 8-bit integers, pretrained by int_lm
{how}: there was no floating-point number in a step.
"""

_UNMEASURED = """\
No figures on held-out text belong to these weights. `python eval.py --export DIRECTORY{flags}`,
in a clone of int_lm, measures them on the held-out text, and with `--text FILE` on any text.
"""

_USE = """\
## Use

`runtime.py` needs Python 3.11 and NumPy, nothing else. In this directory:

```python
import runtime

{load}
sampler = runtime.Sampler(temperature=0.8, seed=0)
{snippet}```

The same weights give the same bits on every machine. With `int_lm` installed,
`python -m int_lm.sample --export DIRECTORY{flags} --prompt "The "` writes text to the terminal.

From the Hugging Face hub, `hf download OWNER/NAME --local-dir DIRECTORY` brings these files. With
`int_lm` installed (`pip install int-lm`), `hf://OWNER/NAME@REVISION` may stand in place of
DIRECTORY. No code of the repository is run then.
"""

_IN_C = """\
`runtime.c` needs a C compiler alone, and no floating point of the processor:

```console
$ cc -O3 -o model runtime.c
$ ./model sample --prompt {prompt} --tokens 200
$ ./model score FILE
```
"""

_NOT_IN_C = """\
There is no `runtime.c` of this network: it has no counterpart in C for {lacking}.
"""

_OF_BYTES = """\
print(bytes(runtime.generate(runtime.reader(model), b"The ", sampler, tokens=200)))
print(-runtime.log2_likelihoods(model, [b"Some text."])[0] / 2**16, "bits")
"""

_OF_PIECES = """\
# ids are those of tokenizer/tokenizer.model (SentencePiece); 0 is between documents
ids = [65, 66, 67]
print(list(runtime.generate(runtime.reader(model), ids, sampler, tokens=200)))
print(-runtime.log2_likelihoods(model, [ids])[0] / 2**16, "bits")
"""

_FIGURES = ("bits_per_byte", "bytes", "tokens", "byte_perplexity", "token_perplexity")


def _how(votes: str) -> str:
    """What the introduction says of the method."""
    if votes == "deep":
        return "in integers, without automatic differentiation"
    return "with forward passes only, and no back-propagation"


def _table(header: tuple[str, str], rows: Mapping[str, Any]) -> str:
    """A Markdown table; rows whose value is None are left out."""
    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return "\n".join(lines) + "\n"


def check_evaluation(evaluation: Any) -> None:
    """Check that a JSON value has the form that `run.write_evaluation` writes.

    Raises:
      MalformedError: a figure is missing or is not a number.
    """

    def are_numbers(values: Any) -> bool:
        return all(type(value) in (int, float) for value in values)

    if not isinstance(evaluation, dict):
        raise untrusted.MalformedError("it is no JSON object")
    interval, baselines = evaluation.get("interval_95"), evaluation.get("baselines")
    sound = are_numbers(evaluation.get(name) for name in _FIGURES)
    sound = sound and isinstance(baselines, dict) and are_numbers(baselines.values())
    spread = isinstance(interval, list) and len(interval) == 2 and are_numbers(interval)
    text = evaluation.get("text", {})  # older versions did not write this entry
    sound = sound and isinstance(text, dict)
    sound = sound and re.fullmatch("[0-9a-f]{64}", str(text.get("sha256", "0" * 64))) is not None
    if not (sound and (spread or interval is None)):
        raise untrusted.MalformedError("it lacks figures")


def belongs(settings: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> bool:
    """Whether figures are of these weights, on text held out of the text of their training.

    Args:
      settings: content of config.json.
      evaluation: content of evaluation.json, or None.
    """
    text = (evaluation or {}).get("text")
    of_text = text.get("held_out_of") if isinstance(text, dict) else None
    if not evaluation or not of_text:
        return False
    own = evaluation.get("weights_hash"), of_text
    return own == (settings["weights_hash"], settings["text_sha256"])


def _measured(
    settings: Mapping[str, Any], evaluation: Mapping[str, Any] | None, flags: str, described: str
) -> str:
    """The section with the figures of `evaluation`; without figures, how to measure them.

    Figures are shown only if they were measured with these weights, on text that was held out of
    the text of their training.

    Args:
      settings: content of config.json.
      evaluation: content of evaluation.json, or None.
      flags: flags that a command needs to read the export.
      described: description of the text of the training.
    """
    evaluation = evaluation or {}
    if not belongs(settings, evaluation):
        return _UNMEASURED.format(flags=flags)
    interval = evaluation["interval_95"]
    spread = f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    bits = {"this model": f"**{evaluation['bits_per_byte']:.4f}**{spread}"}
    for name, value in evaluation["baselines"].items():
        bits[_BASELINES.get(name) or name] = f"{value:.4f}"
    return (
        f"On {evaluation['bytes']:,} bytes ({evaluation['tokens']:,} tokens) held out of "
        f"{described} (sha256 `{evaluation['text']['sha256']}`), counted in exact integers:\n\n"
        + _table(("", "bits per byte"), bits)
        + f"\nPerplexity {evaluation['byte_perplexity']:.3f} per byte, "
        f"{evaluation['token_perplexity']:.3f} per token.\n"
    )


def _pruned(settings: Mapping[str, Any]) -> str | None:
    """A row about pruned entries of context tables and their cost; None if nothing was pruned."""
    if not (pruned := settings.get("pruned")):
        return None
    return (
        f"entries of context tables nearer to 0 than {pruned['least']}, {pruned['dropped']:,} in "
        f"number, are 0 here: {pruned['price']:+.4f} bits per byte of {pruned['bytes']:,} held-out "
        "bytes"
    )


def _contexts(model: config.ModelConfig) -> str:
    """What selects the rows of context tables, in words."""
    kinds = [(model.direct, "tokens"), (model.words, "words")]
    parts = [f"the last {', '.join(map(str, of))} {kind}" for of, kind in kinds if of]
    return " and ".join(parts)


def described_text(data: config.DataConfig) -> str:
    """The sources of the text; for a dataset of the hub also its name and revision."""
    described = []
    for source in config.sources_of(data):
        name = f" ({' '.join((*source.path, source.revision)).strip()})"
        share = f"{source.name}, weight {source.weight:g}: " if data.mixture else ""
        described.append(share + _SOURCES[source.source] + name * (source.source == "hub"))
    return "; ".join(described)


def model_card(
    run: "Run",
    settings: Mapping[str, Any],
    file_size: int,
    evaluation: Mapping[str, Any] | None,
    architectures: Mapping[str, type],
    lacking: str = "",
    *,
    front: str = "",
) -> str:
    """The card as Markdown; the same for the same run and evaluation.

    Args:
      run: the model.
      settings: content of config.json.
      file_size: bytes of the weights file.
      evaluation: content of the run's evaluation.json; None if there is none.
      architectures: as `export.numpy_forms` returns them.
      lacking: the operation of the network that cannot be written in C; "" if there is none.
      front: the metadata, as the function `front` returns them.
    """
    from int_lm.model import params

    model, es, data = run.config.model, run.config.es, run.config.data
    recipe, streams = run.recipe, es.streams
    count, tables = (
        params.count(part) for part in (recipe.model.specs.network, recipe.model.specs.tables)
    )
    by_fitness = any(estimator.of_fitness for estimator in recipe.voting)
    sizes = {
        "architecture": (
            f"`{model.architecture}`, {counted(model.layers, 'layer')} of width {model.width}"
        ),
        "weights": f"{count:,}, one byte each",
        "context tables": f"from {_contexts(model)} to the logits: {tables:,} weights besides, "
        "one byte each"
        if model.direct or model.words
        else None,
        "document cache": f"of what followed the last {', '.join(map(str, model.cache))} tokens"
        if model.cache
        else None,
        "file of all weights": f"{file_size:,} bytes",
        "pruned": _pruned(settings),
        "vocabulary": f"{recipe.model.vocab_size} ({run.tokenizer['kind']})",
        "step": run.step,
        "hash of the weights": f"`{settings['weights_hash']}`",
    }
    perturbed = any(recipe.perturbs(spec) for _, spec in params.flatten(recipe.model.specs.network))
    method = "evolution strategies (EGGROLL), " if perturbed else ""
    training = {
        "method": f"{method}votes `{es.votes}`, update `{es.update}`",
        "objective": f"`{es.objective}`",
        "text": f"{described_text(data)}, {data.holdout:g} of the documents held out",
        "tokens read": f"{run.step * streams * es.segment_length:,} "
        f"({run.step:,} steps x {streams:,} streams x {es.segment_length} tokens)",
        "population": f"{es.population:,}, {es.members_per_stream} per stream",
        "perturbation": f"rank {es.rank}, {es.noise}, sigma 2^-{es.sigma_shift}"
        if perturbed
        else None,
        "fitness": es.fitness if by_fitness else None,
        **recipe.update.settings_used(es),
        "rate of context tables": f"{es.direct_rate:g} at the first reading of a row, then less by "
        "the square root of their number"
        if tables
        else None,
        "context tables left out": f"of words and of more than {es.direct_dropout_above} tokens, "
        f"for {es.direct_dropout:g} of the streams"
        if es.direct_dropout and (model.direct or model.words)
        else None,
        "trust": "network and context tables learnt apart, each from its own errors; their trust, "
        "from one document in 16, is multiplied into these weights"
        if es.pooled
        else None,
        "schedule": f"`{es.schedule}`, over {run.config.run.steps:,} steps",
        "seed": run.config.run.seed,
        "started from": f"other weights, hash `{run.config.run.init_hash}`"
        if run.config.run.init_hash
        else None,
    }
    title = f"# {model.architecture}, {model.layers} x {model.width}, {count:,} int8 weights"
    title += f" and {tables:,} of context tables\n" if tables else "\n"
    load = 'model = runtime.load(".")'
    for name, network in architectures.items():
        imported = "import architecture  # the network, in the file beside this one"
        given = f'{{"{name}": architecture.{network.__name__}}}'
        load = f'{imported}\n\nmodel = runtime.load(".", {given})'
    flags = plugins.flags(plugins.full_names(run.config, ["architecture"]))
    of_bytes = run.tokenizer["kind"] == "bytes"
    in_c = _NOT_IN_C.format(lacking=lacking) if lacking else ""
    in_c = in_c or _IN_C.format(prompt="'The '" if of_bytes else "'65 66 67'")
    return "\n".join(
        (
            front,
            title,
            _INTRODUCTION.format(how=_how(es.votes)),
            _table(("model", ""), sizes),
            "## Training\n",
            _table(("setting", ""), training),
            "## Measured\n",
            _measured(settings, evaluation, flags, described_text(data)),
            _USE.format(load=load, snippet=_OF_BYTES if of_bytes else _OF_PIECES, flags=flags),
            in_c,
        )
    )
