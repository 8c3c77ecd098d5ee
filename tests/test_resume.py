"""What a checkpoint says of its run beside the arrays: what is refused, told, and shared."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from int_lm import config, lengths, resume
from int_lm.config import Config, DataConfig, EsConfig, MixtureConfig, RunConfig
from int_lm.errors import UserError

TWO = tuple(MixtureConfig(name=name, source="text", path=(name,), weight=1.0) for name in "ab")
SETTINGS = Config(data=DataConfig(mixture=TWO, shards="here", tokenizer="pieces"))


def host_of(mixture: Any, settings: Config = SETTINGS) -> dict[str, Any]:
    """The host data of a checkpoint with such a mixture."""
    return resume.host_data(settings, {"vocab_size": 256}, "0" * 64, mixture, 1.0, [[0, 9]])


def test_a_mixture_that_changed_is_read() -> None:
    assert resume.settings_of(host_of([[0, [1.0, 3]], [7, [2, 0.0]]]), Path("x")) == SETTINGS


@pytest.mark.parametrize(
    "mixture",
    [
        [],
        {},
        [[0, []]],
        [[0, [1.0, -1.0]]],
        [[0, [0.0, 0.0]]],
        [[0, [1.0, "1"]]],
        [[1, [1.0, 1.0]]],
        [[0, [1.0, 1.0]], [7, [1.0]]],
        [[0, [1.0, 1.0]], [7, [1.0, 2.0]], [7, [1.0, 1.0]]],
        [[0, [1.0, 1.0]], [7, [1.0, 2.0]], [5, [1.0, 1.0]]],
    ],
)
def test_a_mixture_that_no_run_has_is_refused(mixture: Any) -> None:
    """Rounds begin at 0 and follow one another; every one has a weight for each source."""
    with pytest.raises(UserError, match="the checkpoint in x has no valid mixture"):
        resume.check_host(host_of(mixture), Path("x"))


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        [[0]],
        [[0, -1]],
        [[0, "9"]],
        [[1, 9]],
        [[0, 9], [0, 12]],
        [[0, 9], [7, 12], [5, 9]],
        [9],
    ],
)
def test_lengths_that_no_run_has_are_refused(value: Any) -> None:
    """Steps begin at 0 and follow one another; every one has the value of run.steps."""
    with pytest.raises(UserError, match="the checkpoint in x has no valid lengths"):
        resume.check_host(host_of([[0, [1.0, 1.0]]]) | {"lengths": value}, Path("x"))


def test_lengths_say_from_which_step_run_steps_had_which_value() -> None:
    """Also after a return to an earlier checkpoint, and where nothing was noted yet."""

    def of(steps: int) -> Config:
        return dataclasses.replace(SETTINGS, run=RunConfig(steps=steps))

    host = host_of([[0, [1.0, 1.0]]], of(9))
    assert lengths.after(None, of(9), 0) == [(0, 9)]
    nothing = host | {"lengths": [[0, 0]]}  # a run of 0 steps is one, too
    resume.check_host(nothing, Path("x"))
    assert lengths.after(nothing, of(9), 0) == [(0, 9)]
    assert lengths.after(host, of(9), 4) == [(0, 9)]
    assert lengths.after(host, of(12), 4) == [(0, 9), (4, 12)]
    longer = json.loads(json.dumps(host | {"lengths": [(0, 9), (4, 12), (8, 20)]}))
    assert lengths.of(longer) == [(0, 9), (4, 12), (8, 20)]
    assert lengths.after(longer, of(20), 8) == [(0, 9), (4, 12), (8, 20)]
    assert lengths.after(longer, of(12), 8) == [(0, 9), (4, 12)]
    assert lengths.after(longer, of(20), 3) == [(0, 9), (3, 20)]
    del host["lengths"]
    assert lengths.of(host) == [(0, 9)]
    assert lengths.after(host, of(12), 4) == [(0, 9), (4, 12)]


def test_a_mixture_of_other_sources_is_refused() -> None:
    with pytest.raises(UserError, match="has 2 sources but a mixture of 3"):
        resume.settings_of(host_of([[0, [1.0, 1.0, 1.0]]]), Path("x"))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "inverse_sqrt_to_zero"])
def test_other_steps_change_a_rate_that_ends_with_them(schedule: Any) -> None:
    """Which is told; of rates that do not end, and of the same steps, nothing is."""
    before = dataclasses.replace(SETTINGS, es=EsConfig(schedule=schedule), run=RunConfig(steps=9))
    longer = dataclasses.replace(before, run=RunConfig(steps=12))
    host = host_of([[0, [1.0, 1.0]]], before)
    warning = lengths.changed(host, longer)
    assert warning is not None and f"{schedule} ends at run.steps, which was 9 and is 12" in warning
    assert lengths.changed(host, before) is None
    endless = dataclasses.replace(longer, es=EsConfig(schedule="inverse"))
    assert lengths.changed(host, endless) is None


def test_processes_may_find_the_same_text_at_different_places() -> None:
    """Paths of sources, shards and tokenizer are each process's own; weights are not."""
    tree = config.to_dict(SETTINGS)
    elsewhere = copy.deepcopy(tree)
    elsewhere["data"] |= {"shards": "there", "tokenizer": "/other/pieces"}
    elsewhere["data"]["mixture"][1]["path"] = ["/mnt/b"]
    elsewhere["run"]["dir"] = "runs/other"
    own = resume.shared_configuration(SETTINGS)
    assert own == resume.shared_configuration(config.from_dict(elsewhere))
    elsewhere["data"]["mixture"][1]["weight"] = 2.0
    assert own != resume.shared_configuration(config.from_dict(elsewhere))


def test_a_changed_configuration_is_refused() -> None:
    """Every field that matters is named with both values; those that may change may change."""
    old = config.to_dict(Config())
    new = config.to_dict(Config())
    resume.check_config(old, json.loads(json.dumps(new)))
    for name in resume.RESUMABLE_CHANGES:
        section, key = name.split(".")
        new[section][key] = "another value"
    resume.check_config(old, new)
    new["model"]["width"] = 128
    new["data"]["field"] = "body"
    with pytest.raises(UserError, match="model.width 64, now 128; data.field 'text', now 'body'"):
        resume.check_config(old, new)
    del new["es"]["rank"]
    with pytest.raises(UserError, match="es.rank 1, now None"):
        resume.check_config(old, new)


def mixture(**changes: Any) -> dict[str, Any]:
    """A configuration with sources a and b, the second with `changes`."""
    parts = (TWO[0], dataclasses.replace(TWO[1], **changes))
    return config.to_dict(dataclasses.replace(SETTINGS, data=DataConfig(mixture=parts)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"field": "body"}, "with data.mixture.b.field 'text', now 'body': go back"),
        ({"source": "json"}, "with data.mixture.b.source 'text', now 'json': go back"),
        ({"split": "test", "revision": "1"}, "b.split 'train', now 'test'; data.mixture.b.revi"),
        ({"name": "c"}, "has a source c that the checkpoint has not and lacks b .* weight to 0"),
    ],
)
def test_what_differs_in_a_mixture_is_told_field_by_field(changes, expected: str) -> None:
    """By the name of the part, and without what is the same."""
    with pytest.raises(UserError, match=expected) as caught:
        resume.check_config(mixture(), mixture(**changes))
    assert "'a'" not in str(caught.value) and "[" not in str(caught.value)


def test_what_may_differ_in_a_mixture_may() -> None:
    """Weights, places, damaged records, and the order, which is that of the checkpoint then."""
    resume.check_config(mixture(), mixture(weight=0.0, path=("z",), skip_damaged=9))
    other = config.from_dict(mixture())
    data = dataclasses.replace(other.data, mixture=other.data.mixture[::-1])
    other = dataclasses.replace(other, data=data)
    resume.check_config(mixture(), config.to_dict(other))
    ordered = resume.in_order(other, {"config": mixture()})
    assert ordered == config.from_dict(mixture())
    with pytest.raises(UserError, match=r"data.mixture \['a', 'b'\], now \[\]"):
        resume.check_config(mixture(), config.to_dict(Config()))


def test_another_tokenizer_is_refused() -> None:
    """The identities are compared entry by entry."""
    resume.check_tokenizer({"sha256": "ab"}, {"sha256": "ab"})
    with pytest.raises(UserError, match="tokenizer.sha256 'ab', now 'cd'"):
        resume.check_tokenizer({"sha256": "ab"}, {"sha256": "cd"})


@pytest.mark.parametrize("objective, advised", [("log_likelihood", True), ("reward", False)])
def test_only_trainings_are_advised_to_start_from_their_weights(
    objective: str, advised: bool
) -> None:
    """A tuning is told what it starts from by --run, and no policy starts from another one."""
    before, now = (
        config.to_dict(Config(es=EsConfig(objective=objective, direct_dropout=share)))
        for share in (0.0, 0.5)
    )
    with pytest.raises(UserError, match=r"direct_dropout 0\.0, now 0\.5.* new run") as refused:
        resume.check_config(before, now)
    assert ("--run.init_from" in str(refused.value)) == advised


def older(**es: Any) -> dict[str, Any]:
    """A configuration as version 0.1.0 wrote it, with other values of some fields."""
    tree = config.to_dict(Config())
    del tree["es"]["objective"]  # which it did not have
    tree["es"] |= {"noise_reuse": 1, "vote_clip": 0.0} | es
    return tree


def test_a_configuration_of_an_older_version_is_the_same() -> None:
    """Fields that it did not have count as their defaults; those removed since had no effect."""
    resume.check_config(older(), config.to_dict(Config()))
    other = config.to_dict(Config(es=EsConfig(objective="my_package.task:TASK")))
    expected = "es.objective 'log_likelihood', now 'my_package.task:TASK': go back to the old value"
    with pytest.raises(UserError, match=expected):
        resume.check_config(older(), other)
    removed = "es.vote_clip in the checkpoint in x is 2.0, an option that was removed"
    with pytest.raises(UserError, match=removed):
        resume.check_config(older(vote_clip=2.0), config.to_dict(Config()), "the checkpoint in x")
