"""Tune a model with a reward: go on from its weights, and prefer what a function rewards.

    python -m int_lm.tune --run runs/sums --reward digit_sums --run.dir runs/tuned
    python -m int_lm.tune --export DIR --reward my_module:reward --prompts prompts.jsonl --run.dir D

A reward is a task of int_lm (int-lm tasks lists them), or a function of yours,

    def reward(prompt: str, completion: str, facts: dict) -> float

with prompts from JSON lines {"prompt": ...}, whose further keys are the facts. The population
writes completions of prompts, every member under its own perturbation; the rewards of these are
votes on the weights. Model and text are those of the weights; every other field can be set as in
training. A run directory that holds a checkpoint is resumed, bit for bit. SIGINT and SIGTERM save
and stop at the next step; a second one stops at once.
"""

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from int_lm import cache, config, errors, plugins, programs, signals
from int_lm.config import Config, DataConfig, ModelConfig, command_line
from int_lm.errors import counted, require
from int_lm.training import outcome

if TYPE_CHECKING:  # imported where needed, so that --help and a wrong flag answer at once
    from int_lm.files.lock import Lock
    from int_lm.training.origin import Origin
    from int_lm.training.outcome import Outcome
    from int_lm.training.session import Begun
    from int_lm.tune.prompts import Prompts
    from int_lm.tune.tuner import Tuner

PROGRAM = "int_lm.tune"
COMMAND = f"python -m {PROGRAM}"


def parse(argv: Sequence[str] | None, program: str = COMMAND) -> argparse.Namespace:
    """The parsed command line. `settings_of` makes a configuration of it."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = command_line.OneLineParser(
        prog=program,
        usage="%(prog)s (--run DIR | --export DIR) --reward NAME --run.dir DIR "
        "[--section.field VALUE ...]",
        description=command_line.started_as(__doc__, COMMAND, program),
        formatter_class=raw,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="DIR", help="run whose weights are tuned")
    source.add_argument("--export", metavar="DIR", help="export whose weights are tuned")
    parser.add_argument(
        "--reward",
        metavar="NAME",
        help="a task (int-lm tasks lists them), or package.module:function; as --reward.name",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="JSON lines with the prompts of a function of yours; as --reward.prompts",
    )
    parser.add_argument(
        "--json", action="store_true", help="at the end print one JSON object, and nothing else"
    )
    parser.add_plugin_argument()
    command_line.add_config_arguments(parser)
    return parser.parse_strict(argv)


def asked_of(arguments: argparse.Namespace) -> tuple[Config, dict[str, Any]]:
    """The configuration that the user wrote, and the values of the flags by `section.field`.

    `settings_of` replaces its sections `model` and `data` by those of the weights.

    Raises:
      UserError: a mistake in the arguments.
    """
    flags = {name: value for name, value in vars(arguments).items() if "." in name}
    for flag, field in (("reward", "reward.name"), ("prompts", "reward.prompts")):
        if (value := getattr(arguments, flag)) is not None:
            flags.setdefault(field, value)
    of_weights = [name for name in flags if re.match(r"model\.|data\.|run\.init_from$", name)]
    require(
        not of_weights,
        f"{', '.join(f'--{name}' for name in of_weights)}: model, text and start are those of the "
        "weights that --run or --export names; leave it out",
    )
    require("run.dir" in flags or arguments.config is not None, "name a new directory: --run.dir")
    flags["run.init_from"] = str(arguments.run or arguments.export)
    base = command_line.configuration(arguments.config or "tune")
    asked = command_line.overridden(base, flags, "the command line")
    require(
        asked.reward.name != "",
        "no reward is named; give --reward with a task (int-lm tasks lists them) or "
        "package.module:function",
    )
    config.validate(dataclasses.replace(asked, model=ModelConfig(), data=DataConfig()))
    return asked, flags


def settings_of(asked: Config, flags: Mapping[str, Any]) -> "tuple[Config, Origin | None]":
    """The validated configuration, and the weights that a new run starts from.

    The arguments are those that `asked_of` returns. The weights are None for a run that is resumed.

    Raises:
      UserError: no such weights, or fields that do not go together.
    """
    from int_lm import run
    from int_lm.files import checkpoint
    from int_lm.training import origin

    path = asked.run.init_from
    own = run.Paths(Path(asked.run.dir)).checkpoints
    start = None
    if checkpoint.steps(own):
        host = checkpoint.read_host(own)
        run.check_kind(host, run.TUNING, asked.run.dir)
        saved = host["config"]
        sections = {key: saved.get(key, {}) for key in ("model", "data")}
    else:
        start = origin.read(path, say=errors.say)
        sections = {"model": start.model, "data": start.data}
    of_weights = config.from_dict(config.to_dict(asked) | sections, path)
    return config.validate(command_line.overridden(of_weights, flags, "the command line")), start


def check(settings: Config) -> None:
    """Refuse a configuration that is not one of tuning, before text or weights are read.

    Raises:
      UserError: the objective is not one in which members write, the reward is unknown, or the
        prompts do not fit the reward.
    """
    from int_lm import tasks
    from int_lm.method import objective, recipe
    from int_lm.tasks import Task

    require(
        objective.get(settings.es.objective).written,
        f"es.objective is {settings.es.objective}, int_lm.tune needs one that has members write: "
        "reward",
    )
    recipe.check(settings)
    name, prompts = settings.reward.name, settings.reward.prompts
    of_own = plugins.is_full(name)
    if not of_own:
        tasks.of(name)
    own_task = of_own and isinstance(plugins.attribute(name, f"the reward {name}"), Task)
    if own_task:
        plugins.trust(name)
    needed = of_own and not own_task
    require(
        not needed or prompts != "",
        f"the reward {name} needs prompts; give a file of JSON lines with --prompts",
    )
    require(
        needed or prompts == "",
        f"the reward {name} is a task, which has prompts of its own; leave out --prompts",
    )


def prompts_of(settings: Config) -> "Prompts":
    """The prompts that the configuration names.

    Raises:
      UserError: a prompt is invalid; the message has file and line.
    """
    from int_lm.tasks import Example
    from int_lm.tune import prompts

    count, seed = settings.es.streams, settings.run.seed
    if not settings.reward.prompts:
        return prompts.of_task(settings.reward.name, settings.reward, count, seed)
    read = programs.load("data.tasks").prompts(settings.reward.prompts)
    examples = [Example(prompt, facts) for prompt, facts in read]
    return prompts.of_file(examples, settings.reward, count, seed)


def tune(asked: Config, flags: Mapping[str, Any], own: Path) -> "Outcome":
    """Start or resume a tuning, together with the other processes of the run, if there are any.

    Args:
      asked: the configuration that `asked_of` returns.
      flags: the flags that `asked_of` returns.
      own: the run or export with the weights and their tokenizer.

    Raises:
      UserError: a mistake in configuration, prompts or run directory, or a reward that fails.
    """
    from int_lm.training import distributed, memory, track

    memory.one_heap()
    track.check(asked.run.track)
    with (
        signals.Spared(asked.run.saving_signals),
        distributed.processes(PROGRAM, asked.distributed),  # before weights are read, by JAX
    ):
        settings, start = settings_of(asked, flags)
        check(settings)
        prompts = prompts_of(settings)
        with distributed.holding(Path(settings.run.dir)) as held:
            return _tune_locked(settings, start, own, prompts, held)


def _tune_locked(
    settings: Config, start: "Origin | None", own: Path, prompts: "Prompts", held: "Lock | None"
) -> "Outcome":
    """The body of `tune`, while this run holds the lock `held` of its directory."""
    programs.make_importable()
    import tokenization
    from int_lm import run
    from int_lm.training import origin, session as sessions
    from int_lm.training.text import Documents, Text
    from int_lm.tune import tuner as tuners
    from int_lm.tune.judge import Judge
    from int_lm.tune.prompts import Coder

    paths = run.Paths(Path(settings.run.dir))
    if start:
        tokenizer = tokenization.load_own(own, start.tokenizer)
    else:
        tokenizer = tokenization.load(paths.tokenizer)
    identity = tokenization.identity(tokenizer)
    if start:
        origin.check(start, settings, identity)
    coder = Coder(tokenizer, prompts.stop, settings.reward.prompt_tokens)
    coder.check(prompts, settings.reward.prompts)
    reward = settings.reward
    processes = reward.processes or int(plugins.is_full(reward.name))
    with Judge(reward.name, processes=processes, seconds=reward.seconds) as judge:
        begun = sessions.begin(settings, identity, prompts.sha256, start)
        nothing = Documents([], [], [])
        text = Text(
            tokenizer=tokenizer,
            identity=identity,
            streams=tuners.Batches(prompts, coder),  # type: ignore[arg-type]
            sha256=prompts.sha256,
            mixture=_mixture(settings, begun),
            heldout=nothing,
            validation=nothing,
        )
        with sessions.opened(begun, tokenizer, held) as session:
            sessions.say_resuming(begun, session)
            tokens, before = tuners.of_host(begun.host or {})
            of_start = begun.start.text_sha256 if begun.start else None
            text_sha256 = run.text_of(begun.host) if begun.host else of_start
            tuner = tuners.Tuner(
                text=text,
                judge=judge,
                prompts=prompts,
                coder=coder,
                tokens=tokens,
                before=before,
                text_sha256=text_sha256,
                **sessions.parts(begun, session),
            )
            return sessions.outcome(tuner, begun, session, lambda: finish(tuner))


def _mixture(settings: Config, begun: "Begun") -> Sequence[Any]:
    """The phases of the text of the training, which tuning keeps but does not read."""
    sources = config.sources_of(settings.data)
    return begun.host["mixture"] if begun.host else [(0, [source.weight for source in sources])]


def finish(tuner: "Tuner") -> Mapping[str, Any]:
    """Evaluate, save, and print the next commands; returns the figures that --json prints."""
    answered = tuner.answered
    if answered is None or answered[0] != tuner.step:
        tuner.answer()
    tuner.secure()
    assert tuner.answered is not None
    after, count = tuner.answered[1], len(tuner.prompts.held_out)
    reward, solved = tuner.before or (None, None)
    note, reward_of = tuner.console.note, tuner.settings.reward.name
    tuner.show(after)
    was = "" if reward is None else f" (before: reward {reward:.4f}, {solved:.2%} solved)"
    note(
        f"{reward_of} after {counted(tuner.step, 'step')}: reward {after.reward:.4f}, "
        f"{after.solved:.2%} solved of {counted(count, 'held-out prompt')}{was}"
    )
    root = tuner.settings.run.dir
    run_flag = f"--run {root}{plugins.flags(plugins.full_names(tuner.settings))}"
    sample, export = map(command_line.command, ("sample", "export"))
    prompt = tuner.prompts.held_out[0].prompt
    note(f"run directory: {root}\nnext:")
    note(f"  {sample} {run_flag} --temperature 0 --prompt {command_line.quoted(prompt)}")
    note(f"  {export} {run_flag} --out {root}/export")
    return {
        "task": reward_of,
        "steps": tuner.step,
        "seconds": tuner.seconds,
        "reward_before": reward,
        "reward_after": after.reward,
        "solved_before": solved,
        "solved_after": after.solved,
        "prompts": count,
    }


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Tune.

    Args:
      argv: arguments; None for those of the process.
      program: name of this command in its help.
    """
    arguments = parse(argv, program)
    plugins.trust(*arguments.plugin)
    asked, flags = asked_of(arguments)
    plugins.trust_settings(asked)
    own = Path(arguments.run or arguments.export)
    cache.keep()
    outcome.report(lambda: tune(asked, flags, own), arguments.json)


if __name__ == "__main__":
    with errors.reported(PROGRAM):
        main()
