"""Resumption: what a checkpoint says of its run, and which runs may go on from it.

Beside the arrays a checkpoint keeps `host_data`. A run goes on from it if its configuration, text,
tokenizer and noise are the same, but for what changes no bit of the weights (`RESUMABLE_CHANGES`).
`check_resumable` refuses other runs; `resumption_warning` tells what is allowed and yet makes
another run.

Importing this imports no JAX: exports, too, have a tokenizer that must be theirs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from int_lm import config
from int_lm.config import Config, DistributedConfig, RunConfig
from int_lm.errors import UserError
from int_lm.method import schedules
from int_lm.runtime import VOCABULARY_MAX

EXIT_NOTHING_TO_TRAIN = 4  # of train.py, for wrappers that start a run again and again

# Where text and tokenizer are found: the digest of what is found there decides.
PLACES = frozenset({"data.path", "data.tokenizer"})
# What may change between a run and its resumption without changing the meaning of its weights; of
# run.steps, on which some schedules depend, `resumption_warning` says so.
RESUMABLE_CHANGES = (
    PLACES
    | {"es.chunk", "data.shards", "data.heldout_bytes", "data.skip_damaged"}
    | {f"run.{field.name}" for field in dataclasses.fields(RunConfig) if field.name != "seed"}
    | {f"distributed.{field.name}" for field in dataclasses.fields(DistributedConfig)}
)


# -- What a checkpoint says of its run -------------------------------------------------------------


def host_data(
    settings: Config,
    tokenizer: Mapping[str, Any],
    text_sha256: str,
    mixture: Sequence[Any],
    seconds: float,
) -> dict[str, Any]:
    """What a checkpoint keeps beside the arrays: all that a resumed run must agree with.

    The position in the text is the number of the step, with `mixture`, the rounds at which the
    weights of the sources changed.
    """
    from int_lm.arithmetic.noise import NOISE_VERSION

    return {
        "config": config.to_dict(settings),
        "tokenizer": dict(tokenizer),
        "text_sha256": text_sha256,
        "mixture": mixture,
        "noise_version": NOISE_VERSION,
        "seconds": seconds,
    }


def check_host(host: Mapping[str, Any], where: Path) -> None:
    """Refuse a checkpoint's host data that are not of the form which `host_data` gives them.

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
    }
    for key, is_sound in sound.items():
        if not is_sound:
            raise UserError(
                f"the checkpoint in {where} has no valid {key}; restore its files from a copy, or "
                "start again with another --run.dir"
            )


def _is_mixture(value: Any) -> bool:
    """Whether a JSON value is a list of phases, the first from round 0 on, of the same sources."""
    if not (isinstance(value, list) and value and all(map(_is_phase, value))):
        return False
    rounds = [first for first, _ in value]
    in_order = rounds[0] == 0 and all(a < b for a, b in zip(rounds[:-1], rounds[1:], strict=True))
    return in_order and len({len(weights) for _, weights in value}) == 1


def _is_phase(value: Any) -> bool:
    """Whether a JSON value is a phase of a mixture: [first round, [weight, ...]]."""
    return (
        isinstance(value, list)
        and [type(part) for part in value] == [int, list]
        and value[0] >= 0
        and len(value[1]) > 0
        and all(type(weight) in (int, float) and weight >= 0 for weight in value[1])
        and any(weight > 0 for weight in value[1])
    )


def settings_of(host: Mapping[str, Any], where: Path) -> Config:
    """The configuration that a checkpoint in `where` was written with; errors as of `check_host`.

    Raises:
      UserError: it is none that this program accepts.
    """
    check_host(host, where)
    settings = config.validate(config.from_dict(host["config"], f"the checkpoint in {where}"))
    sources, weights = len(config.sources_of(settings.data)), len(host["mixture"][0][1])
    if sources != weights:
        raise UserError(
            f"the checkpoint in {where} has {sources} sources but a mixture of {weights}; restore "
            "its files from a copy"
        )
    return settings


# -- Which runs may go on --------------------------------------------------------------------------


def check_config(
    saved: Mapping[str, Any], current: Mapping[str, Any], where: str = "the checkpoint"
) -> None:
    """Refuse to resume under another configuration (nested dicts as of `config.to_dict`).

    Fields in `RESUMABLE_CHANGES` may differ, those of a mixture's sources too, and the weights of a
    mixture and the order of its sources. A field that the version which wrote the checkpoint did
    not have counts as its default, one that was removed since as absent if its value changed
    nothing (`config.load.REMOVED`).

    Args:
      where: the saved configuration stands, for sentences about it.

    Raises:
      UserError: names every other field that differs, with both values; or `saved` is none that
        this program accepts.
    """
    complete = config.to_dict(config.from_dict(saved, where))
    before, now = _by_name(complete), _by_name(current)
    _refuse_other_sources(complete, current)
    _refuse_differences(before, now, "go back to the old value")


def check_tokenizer(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse a tokenizer other than the one the weights were trained with.

    Raises:
      UserError: names every entry of the two identities that differs, with both values.
    """
    _refuse_differences(
        _by_name({"tokenizer": saved}),
        _by_name({"tokenizer": current}),
        "use the tokenizer of the run",
    )


def _refuse_other_sources(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse a mixture that has a source more, or one less, than the checkpoint's."""
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
            "start a new run with another --run.dir"
        )


def _by_name(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Values by `section.key`, those of a mixture by `data.mixture.source.key`.

    Those that may change are left out.
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
    if "data.mixture" in fixed:  # whether there is one
        fixed["data.mixture"] = [source["name"] for source in fixed["data.mixture"]]
        fixed["data.mixture"].sort()
    return fixed


def in_order(settings: Config, host: Mapping[str, Any]) -> Config:
    """`settings` with the sources of its mixture in the order of the checkpoint, whose they are."""
    order = [source["name"] for source in host["config"].get("data", {}).get("mixture", ())]
    mixture = sorted(settings.data.mixture, key=lambda source: order.index(source.name))
    data = dataclasses.replace(settings.data, mixture=tuple(mixture))
    return dataclasses.replace(settings, data=data)


def other_places(host: Mapping[str, Any], settings: Config) -> str:
    """Where text and tokenizer were and are now, where that differs; empty if it does not."""
    saved = config.from_dict(host["config"], "the checkpoint").data
    now = settings.data
    places = [("data.tokenizer", saved.tokenizer, now.tokenizer)]
    for before, after in zip(config.sources_of(saved), config.sources_of(now), strict=True):
        name = f"data.mixture.{after.name}.path" if now.mixture else "data.path"
        places.append((name, " ".join(before.path), " ".join(after.path)))
    return "; ".join(f"{name} was {old}, now {new}" for name, old, new in places if old != new)


def _refuse_differences(saved: dict[str, Any], current: dict[str, Any], remedy: str) -> None:
    differences = [
        f"{name} {saved.get(name)!r}, now {current.get(name)!r}"
        for name in saved | current
        if saved.get(name) != current.get(name)
    ]
    if differences:
        raise UserError(
            f"the checkpoint was written with {'; '.join(differences)}: "
            f"{remedy}, or start a new run with another --run.dir"
        )


def check_resumable(
    host: Mapping[str, Any], settings: Config, tokenizer: Mapping[str, Any], text_sha256: str
) -> None:
    """Refuse to go on from a checkpoint that another model, text, tokenizer or noise made.

    Args:
      host: the checkpoint's `host_data`; the others describe the run that wants to go on.

    Raises:
      UserError: names what differs, with both values.
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
                "restore what changed or choose another --run.dir"
            )


def resumption_warning(host: Mapping[str, Any], settings: Config) -> str | None:
    """What is to be known of a run that may go on, but not as an undisturbed one; None for nothing.

    Args:
      host: `host_data` of its checkpoint, checked.
    """
    before, now = host["config"].get("run", {}).get("steps"), settings.run.steps
    if type(before) is not int:
        return None
    schedule = settings.es.schedule
    if schedules.decay(schedule, 1, 1.0, before) == schedules.decay(schedule, 1, 1.0, now):
        return None
    return (
        f"es.schedule {schedule} ends at run.steps, which was {before} and is {now}: rates go on "
        f"as those of a run of {now} steps, to other weights than such a run would have"
    )


def nothing_to_train(host: Mapping[str, Any], settings: Config, step: int) -> str | None:
    """Why a run that stands at `step` has no step left, and what to raise; None if it has.

    Args:
      host: `host_data` of its checkpoint, checked.
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
    """What the processes of a run must have in common: all but where each finds its files.

    That these hold the same is for the digest of the text to say.
    """
    tree = config.to_dict(settings)
    files = {"path", "shards", "tokenizer"}
    own = {"distributed": set(tree["distributed"]), "run": {"dir"}, "data": files}
    for source in tree["data"]["mixture"]:
        del source["path"]
    return {
        section: {key: value for key, value in fields.items() if key not in own.get(section, ())}
        for section, fields in tree.items()
    }
