"""Verify a run: `python -m int_lm.verify RUN` computes steps again and compares their hashes."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from int_lm import plugins, programs, progress, verify
from int_lm.config.command_line import OneLineParser
from int_lm.errors import UserError, reported, say

PROGRAM = "int_lm.verify"
COMMAND = f"python -m {PROGRAM}"
EXIT_DIFFERENT = 1


def main(argv: Sequence[str] | None = None, program: str = COMMAND) -> None:
    """Verify a run; exit with 0 if all hashes are equal, with 1 if one differs.

    Args:
      argv: arguments; None for those of the process.
      program: name of this command in its help.
    """
    parser = OneLineParser(
        prog=program,
        description="Compute steps of a run again, from one of its checkpoints or from its "
        "beginning, and compare the hash of the weights with every one that metrics.jsonl has for "
        "them. Needs the text that the run was trained on, or its token shards. Exit code 1 if a "
        "hash differs.",
    )
    parser.add_argument("run", metavar="RUN", help="run directory that train.py wrote")
    parser.add_argument(
        "--step",
        type=int,
        help="checkpoint to begin at, 0 for the beginning (default: the oldest kept, or the "
        "beginning where no hash was logged after it)",
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="steps to compute at most (default: 0, all logged)"
    )
    parser.add_argument(
        "--data.path",
        dest="path",
        nargs="+",
        metavar="FILE",
        help="where the text is now, if it was moved; its digest must be that of the run's text",
    )
    parser.add_argument(
        "--data.shards", dest="shards", metavar="DIR", help="where its token shards are now"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_plugin_argument()
    arguments = parser.parse_strict(argv)
    plugins.trust(*arguments.plugin)
    if arguments.steps < 0:
        raise UserError(f"--steps is {arguments.steps}, must be at least 0")
    root = Path(arguments.run)
    if not root.is_dir():
        raise UserError(f"no run at {root}; name the directory that train.py printed")

    programs.make_importable()
    import tokenization
    from data.open import open_trained
    from int_lm import lengths, resume, run
    from int_lm.files import checkpoint
    from int_lm.method import evolve, objective, recipe
    from int_lm.method.evolve import State
    from int_lm.runtime import WEIGHTS_FILE
    from int_lm.training import origin

    paths = run.Paths(root)
    kept = checkpoint.steps(paths.checkpoints)
    if not kept and (root / WEIGHTS_FILE).exists():
        raise UserError(f"{root} is an export; name the run directory that it was exported from")
    if not kept:
        raise UserError(f"{root} holds no checkpoint, and so nothing that says what the run was")
    hashes = verify.logged_hashes(paths.metrics)
    first = arguments.step
    if first is None:
        first = kept[0] if max(hashes, default=0) > kept[0] else 0
    host = checkpoint.read_host(paths.checkpoints, first or None)
    settings = resume.settings_of(host, paths.checkpoints)
    if objective.get(settings.es.objective).written:
        raise UserError(
            f"{root} was trained with rewards, which verify does not compute; run the same command "
            "with another --run.dir and compare the hashes in metrics.jsonl"
        )
    last = first + arguments.steps if arguments.steps else max(hashes, default=first)
    expected = {step: hashes[step] for step in hashes if first < step <= last}
    if not expected and last < max(hashes, default=0):
        following = min(step for step in hashes if step > first)
        raise UserError(
            f"{paths.metrics} has no hash of steps {first + 1} to {last}; make --steps at least "
            f"{following - first}"
        )
    if not expected:
        earlier = "; begin at an earlier checkpoint (--step, 0 for the beginning)" * bool(hashes)
        raise UserError(f"{paths.metrics} has no step after {first} to compare with{earlier}")
    if arguments.step is None and not first:
        say(
            f"no hash was logged after the checkpoint of step {kept[0]}; computing all from the "
            "beginning (--steps N computes the first N steps alone)"
        )
    tokenizer = tokenization.load(paths.tokenizer)
    data = settings.data
    if arguments.path and data.mixture:
        raise UserError(
            f"{root} has several sources of text; say with --data.shards where their token shards "
            "are"
        )
    data = dataclasses.replace(
        data, path=tuple(arguments.path or data.path), shards=arguments.shards or data.shards
    )
    opened = open_trained(
        data,
        tokenizer,
        host["text_sha256"],
        folders=[]
        if arguments.path
        else [Path(data.shards), run.folder_of(root, settings) / data.shards],
        in_full=True,
        say=say,
    )
    resume.check_resumable(host, settings, tokenization.identity(tokenizer), opened.sha256())
    steps_of = recipe.of(settings, tokenizer.vocab_size)
    if first:
        abstract = evolve.abstract(steps_of).stored()
        restored = checkpoint.restore(paths.checkpoints, abstract, step=first)
        assert restored is not None
        state = evolve.placed(steps_of, State.of_stored(restored.state), None)
    elif settings.run.init_from:
        start = origin.read(settings.run.init_from)
        origin.check(start, settings, tokenization.identity(tokenizer))
        state = evolve.initial(steps_of, origin.weights_for(start, steps_of))
    else:
        state = evolve.initial(steps_of)
    # only the newest checkpoint has all changes of the weights of sources, and of run.steps
    newest = checkpoint.read_host(paths.checkpoints)
    resume.check_host(newest, paths.checkpoints)
    recipes = {
        start: recipe.of(
            dataclasses.replace(settings, run=dataclasses.replace(settings.run, steps=steps)),
            tokenizer.vocab_size,
        )
        for start, steps in lengths.of(newest)
    }
    streams = opened.streams(settings, newest["mixture"])
    with progress.bar("computing steps again", max(expected) - first) as update:
        found = verify.recompute(recipes, state, streams.at, first, expected, progress=update)
    figures = {"from": first, "confirmed": found.confirmed, "differs": found.differs}
    if arguments.json:
        print(json.dumps(figures))
    elif found.differs is None:
        count = len(found.confirmed)
        right = f"all {count} logged hashes are right" if count > 1 else "the logged hash is right"
        print(f"{root}: steps {first + 1} to {found.confirmed[-1]} computed again; {right}")
    else:
        step, logged, other = found.differs
        good = found.confirmed[-1] if found.confirmed else first
        print(
            f"{root}: the hash logged for step {step} is {logged}, computed again it is {other}; "
            f"up to step {good} all is right"
        )
    if found.differs is not None:
        sys.exit(EXIT_DIFFERENT)


if __name__ == "__main__":
    with reported(PROGRAM):
        main()
