"""Resumption: the host data of a checkpoint, and the rules for going on from it.

Beside the arrays a checkpoint holds `host_data`. A run may go on from a checkpoint if its
configuration, text, tokenizer and noise are the same. Fields in `RESUMABLE_CHANGES` may differ.
`check_resumable` refuses other runs. `lengths.changed` names a change that is allowed but leads to
other weights.

JAX is not imported here, so that `train.py` can refuse a run before it starts.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from int_lm import config
from int_lm.config import Config, DistributedConfig, RunConfig
from int_lm.errors import UserError, counted, differences
from int_lm.runtime import VOCABULARY_MAX

# Paths of text and tokenizer may change: the digests of text and tokenizer are compared instead.
PLACES = frozenset({"data.path", "data.tokenizer"})
# Fields that may change when a run is resumed. Some schedules depend on run.steps: then
# `lengths.changed` says so.
RESUMABLE_CHANGES = (
    PLACES
    | {"es.chunk", "data.shards", "data.heldout_bytes", "data.skip_damaged"}
    | {f"run.{field.name}" for field in dataclasses.fields(RunConfig) if field.name != "seed"}
    | {f"reward.{name}" for name in ("heldout_prompts", "seconds", "processes", "solved")}
    | {f"distributed.{field.name}" for field in dataclasses.fields(DistributedConfig)}
)


# -- The host data of a checkpoint -----------------------------------------------------------------


def host_data(
    settings: Config,
    tokenizer: Mapping[str, Any],
    text_sha256: str,
    mixture: Sequence[Any],
    seconds: float,
    run_lengths: Sequence[Any],
) -> dict[str, Any]:
    """The host data of a checkpoint: everything that a resumed run is compared with.

    The position in the text needs no entry: it follows from the step and from `mixture`.

    Args:
      tokenizer: identity of the tokenizer (kind, vocab_size, separator, digest).
      text_sha256: digest of the text and its layout.
      mixture: rounds at which the weights of the sources changed, with the weights.
      seconds: of training so far.
      run_lengths: of `lengths.after`.
    """
    from int_lm.arithmetic.noise import NOISE_VERSION

    return {
        "config": config.to_dict(settings),
        "tokenizer": dict(tokenizer),
        "text_sha256": text_sha256,
        "mixture": mixture,
        "noise_version": NOISE_VERSION,
        "seconds": seconds,
        "lengths": run_lengths,
    }


def check_host(host: Mapping[str, Any], where: Path) -> None:
    """Refuse host data that do not have the form of `host_data`.

    Raises:
      UserError: names `where` and the entry.
    """
    sections, tokenizer, mixture = (host.get(key) for key in ("config", "tokenizer", "mixture"))
    vocab_size = tokenizer.get("vocab_size") if isinstance(tokenizer, dict) else None
    sound = {
        "config": isinstance(sections, dict)
        and all(isinstance(section, dict) for section in sections.values()),
        "tokenizer": type(vocab_size) is int and 0 < vocab_size <= VOCABULARY_MAX,
        "text_sha256": isinstance(host.get("text_sha256"), str),
        "mixture": _is_mixture(mixture),
        "noise_version": type(host.get("noise_version")) is int,
        "seconds": type(host.get("seconds")) in (int, float),
        "lengths": "lengths" not in host or _are_lengths(host["lengths"]),
    }
    for key, is_sound in sound.items():
        if not is_sound:
            raise UserError(
                f"the checkpoint in {where} has no valid {key}; restore its files from a copy, or "
                "start again with another --run.dir"
            )


def _are_phases(value: Any, is_sound: Callable[[Any], bool]) -> bool:
    """Whether a JSON value is [[0, what], [first, what], ...], in order, and each `what` sound."""
    if not (isinstance(value, list) and value):
        return False
    for phase in value:
        whole = isinstance(phase, list) and len(phase) == 2 and type(phase[0]) is int
        if not (whole and is_sound(phase[1])):
            return False
    firsts = [first for first, _ in value]
    return firsts[0] == 0 and all(a < b for a, b in itertools.pairwise(firsts))


def _is_mixture(value: Any) -> bool:
    """Whether a JSON value is a mixture: weights by the round where they begin, of one count."""
    return _are_phases(value, _are_weights) and len({len(weights) for _, weights in value}) == 1


def _are_weights(value: Any) -> bool:
    """Whether a JSON value is the weights of a mixture's sources."""
    return (
        isinstance(value, list)
        and all(type(weight) in (int, float) and weight >= 0 for weight in value)
        and any(weight > 0 for weight in value)
    )


def _are_lengths(value: Any) -> bool:
    """Whether a JSON value is `lengths.of` a run: `run.steps` by the step from which it holds."""
    return _are_phases(value, lambda steps: type(steps) is int and steps >= 0)


def settings_of(host: Mapping[str, Any], where: Path) -> Config:
    """The configuration that a checkpoint was written with.

    Args:
      host: its host data.
      where: its directory, for errors.

    Raises:
      UserError: the host data have a wrong form, or this version refuses the configuration.
    """
    check_host(host, where)
    settings = config.validate(config.from_dict(host["config"], f"the checkpoint in {where}"))
    sources, weights = len(config.sources_of(settings.data)), len(host["mixture"][0][1])
    if sources != weights:
        raise UserError(
            f"the checkpoint in {where} has {counted(sources, 'source')} but a mixture of "
            f"{weights}; restore its files from a copy"
        )
    return settings


# -- Which runs may go on --------------------------------------------------------------------------


def check_config(
    saved: Mapping[str, Any], current: Mapping[str, Any], where: str = "the checkpoint"
) -> None:
    """Refuse to resume with another configuration.

    Fields in `RESUMABLE_CHANGES` may differ, also those of the sources of a mixture. The weights of
    a mixture and the order of its sources may differ, too. A field that the saved configuration
    does not have counts as its default. A field in `config.load.REMOVED` is ignored if it has the
    value that changed nothing.

    Args:
      saved: the configuration in the checkpoint, in the form of `config.to_dict`.
      current: the configuration of the run, in the same form.
      where: the name of the checkpoint in an error.

    Raises:
      UserError: other fields differ (the message has all of them, with both values), or this
        version refuses `saved`.
    """
    complete = config.to_dict(config.from_dict(saved, where))
    before, now = _by_name(complete), _by_name(current)
    _refuse_other_sources(complete, current)
    differs = [name for name in before | now if before.get(name) != now.get(name)]
    fit = not any(name.startswith("model.") for name in differs)
    own = _weights_of(current)
    _refuse_differences(before, now, "go back to the old value", own if fit else None)


def check_tokenizer(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse a tokenizer whose identity is not the one saved at the training.

    Raises:
      UserError: names every entry of the two identities that differs, with both values.
    """
    _refuse_differences(
        _by_name({"tokenizer": saved}),
        _by_name({"tokenizer": current}),
        "use the tokenizer of the run",
    )


def _refuse_other_sources(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse a mixture with other sources than the checkpoint's."""
    before, now = (
        {source["name"] for source in sections.get("data", {}).get("mixture", ())}
        for sections in (saved, current)
    )
    problems = [f"has a source {name} that the checkpoint has not" for name in sorted(now - before)]
    problems += [
        f"lacks {name} (to read a source no longer, set its weight to 0)"
        for name in sorted(before - now)
    ]
    if before and now and problems:
        raise UserError(
            f"data.mixture {' and '.join(problems)}; go back to the sources of the checkpoint, or "
            f"{_other_run(_weights_of(current))}"
        )


def _by_name(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Values by `section.key`, those of a mixture by `data.mixture.source.key`.

    Fields that may change are left out.
    """
    named = {
        f"{section}.{key}": value
        for section in sections
        for key, value in sections[section].items()
    }
    fixed = {name: value for name, value in named.items() if name not in RESUMABLE_CHANGES}
    for source in fixed.get("data.mixture") or ():
        fixed |= {
            f"data.mixture.{source['name']}.{key}": value
            for key, value in source.items()
            if key not in ("name", "weight") and f"data.{key}" not in RESUMABLE_CHANGES
        }
    if "data.mixture" in fixed:
        fixed["data.mixture"] = [source["name"] for source in fixed["data.mixture"]]
        fixed["data.mixture"].sort()
    return fixed


def in_order(settings: Config, host: Mapping[str, Any]) -> Config:
    """`settings` with its sources in the order of the checkpoint, which has the same sources."""
    order = [source["name"] for source in host["config"].get("data", {}).get("mixture", ())]
    mixture = sorted(settings.data.mixture, key=lambda source: order.index(source.name))
    data = dataclasses.replace(settings.data, mixture=tuple(mixture))
    return dataclasses.replace(settings, data=data)


def other_places(host: Mapping[str, Any], settings: Config) -> str:
    """The old and new paths of text and tokenizer, as text; empty if they are the same."""
    saved = config.from_dict(host["config"], "the checkpoint").data
    now = settings.data
    places = [("data.tokenizer", saved.tokenizer, now.tokenizer)]
    for before, after in zip(config.sources_of(saved), config.sources_of(now), strict=True):
        name = f"data.mixture.{after.name}.path" if now.mixture else "data.path"
        places.append((name, " ".join(before.path), " ".join(after.path)))
    return "; ".join(f"{name} was {old}, now {new}" for name, old, new in places if old != new)


def _weights_of(tree: Mapping[str, Any]) -> str | None:
    """The directory of a run with this configuration, for a new one that is trained on text.

    None where rewards are the objective: no policy starts from another one, and a tuning is told
    by --run or --export what it starts from.
    """
    rewarded = tree.get("es", {}).get("objective") == "reward"
    return None if rewarded else tree.get("run", {}).get("dir")


def _other_run(weights: str | None) -> str:
    """How to start a new run, for errors; `weights`: directory of a run whose weights fit it."""
    start = f" that starts from these weights (--run.init_from {weights})" if weights else ""
    return f"start a new run{start} with another --run.dir"


def _refuse_differences(
    saved: dict[str, Any], current: dict[str, Any], remedy: str, weights: str | None = None
) -> None:
    if found := differences(saved, current, ", now "):
        raise UserError(
            f"the checkpoint was written with {'; '.join(found)}: "
            f"{remedy}, or {_other_run(weights)}"
        )


def check_resumable(
    host: Mapping[str, Any], settings: Config, tokenizer: Mapping[str, Any], text_sha256: str
) -> None:
    """Refuse to go on from the checkpoint of another model, text, tokenizer or noise.

    Args:
      host: the host data of the checkpoint; the other arguments describe the run.

    Raises:
      UserError: something differs; the message has both values.
    """
    from int_lm.arithmetic.noise import NOISE_VERSION

    check_host(host, Path(settings.run.dir))
    where = f"the checkpoint in {settings.run.dir}"
    check_config(host["config"], config.to_dict(settings), where)
    check_tokenizer(host["tokenizer"], tokenizer)
    places = other_places(host, settings)
    for name, saved, current in (
        (
            f"training text{f' ({places})' if places else ''} with sha256",
            host["text_sha256"],
            text_sha256,
        ),
        ("noise version", host["noise_version"], NOISE_VERSION),
    ):
        if saved != current:
            raise UserError(
                f"the checkpoint was written with {name} {saved}, now {current}; "
                f"restore what changed, or {_other_run(_weights_of(config.to_dict(settings)))}"
            )


def nothing_to_train(host: Mapping[str, Any], settings: Config, step: int) -> str | None:
    """A sentence that says why no step is left and which limit to raise; None if steps are left.

    Args:
      host: the host data of the checkpoint, checked.
      step: number of updates done.
    """
    run, seconds = settings.run, host["seconds"]
    reached = step >= run.steps
    if not reached and not 0 < run.seconds <= seconds:
        return None
    if reached:
        end = f"run.steps is {run.steps}"
        raised = f"--run.steps above {step}"
    else:
        end = f"its starts so far took {seconds:.0f} of the {run.seconds:g} seconds of run.seconds"
        raised = f"--run.seconds above {seconds:.0f}, or set it to 0 for no limit,"
    return f"nothing to train: {run.dir} is at step {step}, and {end}; raise {raised} to go on"


def shared_configuration(settings: Config) -> dict[str, Any]:
    """The part of the configuration that is equal in all processes of a run.

    Paths of files may differ between processes: the digest of the text is compared instead.
    """
    tree = config.to_dict(settings)
    own = {"distributed": set(tree["distributed"]), "run": {"dir", "init_from", "track"}}
    own["data"] = {"path", "shards", "tokenizer"}
    for source in tree["data"]["mixture"]:
        del source["path"]
    return {
        section: {key: value for key, value in fields.items() if key not in own.get(section, ())}
        for section, fields in tree.items()
    }
