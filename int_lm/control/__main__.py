"""Train an int8 recurrent policy in an environment, from nothing.

    python -m int_lm.control --env CartPole
    python -m int_lm.control --env gymnax:MountainCar-v0 --run.dir runs/car --es.population 512
    python -m int_lm.control --env my_package.my_module:NAME --json

Every member of the population plays episodes under its own perturbation; their returns are votes
on the weights. CartPole, Pendulum and Acrobot are in the box; pip install 'int-lm[rl]' adds those
of gymnax, jumanji and brax; one of your own is a value int_lm.control.environment.Environment.
A run directory that holds a checkpoint is resumed, bit for bit. SIGINT and SIGTERM save and stop at
the next step; a second one stops at once.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from int_lm import cache, config, errors, plugins, signals
from int_lm.config import Config, command_line
from int_lm.errors import require
from int_lm.training import outcome

if TYPE_CHECKING:  # imported where needed, so that --help and a wrong flag answer at once
    from int_lm.control.controller import Controller
    from int_lm.control.environment import Environment
    from int_lm.files.lock import Lock
    from int_lm.method.recipe import Recipe
    from int_lm.training.outcome import Outcome

PROGRAM = "int_lm.control"
COMMAND = f"python -m {PROGRAM}"


def parse(argv: Sequence[str] | None, program: str = COMMAND) -> argparse.Namespace:
    """The parsed command line. `settings_of` makes a configuration of it."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = command_line.OneLineParser(
        prog=program,
        usage="%(prog)s --env NAME [--run.dir DIR] [--section.field VALUE ...]",
        description=command_line.started_as(__doc__, COMMAND, program),
        formatter_class=raw,
    )
    parser.add_argument("--env", metavar="NAME", help="the environment; as --control.env")
    parser.add_argument(
        "--json", action="store_true", help="at the end print one JSON object, and nothing else"
    )
    parser.add_plugin_argument()
    command_line.add_config_arguments(parser)
    return parser.parse_strict(argv)


def settings_of(arguments: argparse.Namespace) -> Config:
    """The validated configuration that the user wrote.

    Raises:
      UserError: a mistake in the arguments, or fields that do not go together.
    """
    flags = {name: value for name, value in vars(arguments).items() if "." in name}
    if arguments.env is not None:
        flags.setdefault("control.env", arguments.env)
    base = command_line.configuration(arguments.config or "control")
    asked = command_line.overridden(base, flags, "the command line")
    require(
        asked.control.env != "",
        "no environment is named; give --env with CartPole, Pendulum, Acrobot, gymnax:NAME, "
        "jumanji:NAME, brax:NAME or package.module:NAME",
    )
    if arguments.config is None and "run.dir" not in flags:
        name = re.sub(r"[^\w.-]+", "-", asked.control.env)
        asked = command_line.overridden(asked, {"run.dir": f"runs/{name}"}, "the command line")
    require(asked.run.init_from == "", "run.init_from is of language models; a policy has none")
    return config.validate(asked)


def recipe_of(settings: Config, environment: "Environment") -> "Recipe":
    """The recipe of a policy.

    Raises:
      UserError: the configuration is not one of a policy, or an int32 sum could overflow.
    """
    from int_lm.control import observations
    from int_lm.control.policy import Policy
    from int_lm.limits import INT32_MAX
    from int_lm.method import chunks, objective, recipe

    es, control = settings.es, settings.control
    require(
        objective.get(es.objective).written,
        f"es.objective is {es.objective}, int_lm.control needs the one of rewards: reward",
    )
    require(not settings.model.direct, "model.direct has context tables, which a policy has not")
    require(not settings.model.words, "model.words has context tables, which a policy has not")
    require(not settings.model.cache, "model.cache has a document cache, which a policy has not")
    model = Policy(settings.model, environment.observations, environment.outputs)
    found = recipe.of_model(settings, model)  # type: ignore[arg-type]
    steps = control.max_steps or environment.max_steps
    counted = max(chunks.size(es) // 2, control.heldout_episodes) * steps
    bound = observations.sums_bound(counted)
    require(
        bound <= INT32_MAX,
        f"the sums of {counted} observations can reach {bound}, above the int32 limit {INT32_MAX}; "
        "make es.chunk, control.heldout_episodes or control.max_steps smaller",
    )
    require(
        steps < INT32_MAX >> 8,
        f"an episode has {steps} steps, so that a return could overflow; set control.max_steps",
    )
    return found


def control(settings: Config) -> "Outcome":
    """Start or resume a run, together with its other processes, if there are any.

    Raises:
      UserError: a mistake in configuration, environment or run directory.
    """
    from int_lm.control import environment as environments
    from int_lm.training import distributed, memory, track

    memory.one_heap()
    track.check(settings.run.track)
    with (
        signals.Spared(settings.run.saving_signals),
        distributed.processes(PROGRAM, settings.distributed),
    ):
        environment = environments.of(settings.control.env)
        recipe_of(settings, environment)
        with distributed.holding(Path(settings.run.dir)) as held:
            return _control_locked(settings, environment, held)


def identity_of(settings: Config, environment: "Environment") -> dict[str, Any]:
    """What a checkpoint says of the environment, in place of a tokenizer."""
    sizes = environment._asdict()
    del sizes["reset"], sizes["step"]
    plain = {name: list(x) if isinstance(x, tuple) else x for name, x in sizes.items()}
    return {"kind": "environment", "vocab_size": environment.outputs, **plain}


def _control_locked(settings: Config, environment: "Environment", held: "Lock | None") -> "Outcome":
    """The body of `control`, while this run holds the lock `held` of its directory."""
    from int_lm.control import controller as controllers
    from int_lm.training import session as sessions
    from int_lm.training.text import Documents, Text

    identity = identity_of(settings, environment)
    begun = sessions.begin(
        settings, identity, "none", None, lambda settings: recipe_of(settings, environment)
    )
    nothing = Documents([], [], [])
    text = Text(
        tokenizer=None,  # type: ignore[arg-type]
        identity=identity,
        streams=controllers.Nothing(),  # type: ignore[arg-type]
        sha256="none",
        mixture=[[0, [1.0]]],
        heldout=nothing,
        validation=nothing,
    )
    kept = controllers.of_host(begun.host, environment.observations) if begun.host else None
    require(
        begun.host is None or kept is not None,
        f"{settings.run.dir} holds no policy; choose another --run.dir",
    )
    with sessions.opened(begun, None, held) as session:
        sessions.say_resuming(begun, session)
        trainer = controllers.Controller(
            text=text,
            environment=environment,
            kept_beside=kept,
            **sessions.parts(begun, session),
        )
        return sessions.outcome(trainer, begun, session, lambda: finish(trainer))


def finish(trainer: "Controller") -> Mapping[str, Any]:
    """Evaluate, save, and print the figures, which --json prints too."""
    if trainer.evaluated is None or trainer.evaluated[0] != trainer.step:
        trainer.answer()
    trainer.secure()
    assert trainer.evaluated is not None
    after, beside, settings = trainer.evaluated[1], trainer.beside, trainer.settings
    trainer.console.note(
        f"{settings.control.env} after {trainer.step} steps: return {after:.5g} in "
        f"{settings.control.heldout_episodes} held-out episodes (before: {beside.before:.5g}, "
        f"random actions: {beside.at_random:.5g})\nrun directory: {settings.run.dir}"
    )
    return {
        "env": settings.control.env,
        "steps": trainer.step,
        "population": settings.es.population,
        "seconds": trainer.seconds,
        "return_before": beside.before,
        "return_after": after,
        "random_return": beside.at_random,
    }


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Train a policy.

    Args:
      argv: arguments; None for those of the process.
      program: name of this command in its help.
    """
    arguments = parse(argv, program)
    plugins.trust(*arguments.plugin)
    settings = settings_of(arguments)
    plugins.trust_settings(settings)
    plugins.trust(settings.control.env)
    cache.keep()
    outcome.report(lambda: control(settings), arguments.json)


if __name__ == "__main__":
    with errors.reported(PROGRAM):
        main()
