"""`python -m int_lm.tune`: rewards of any function, prompts, resumption, and every mistake."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from tiny_command import rows

import eval as eval_command
import tokenization
from data import tasks as readers
from int_lm import export, run as run_module, tasks
from int_lm.config import RewardConfig
from int_lm.errors import UserError
from int_lm.files import checkpoint
from int_lm.tasks import Example
from int_lm.tune import __main__ as command, judge as judge_module, prompts
from int_lm.tune.judge import Judge, Question, RewardError
from int_lm.tune.prompts import Coder

MODULE = '''
import math, os, pathlib, time

def vowels(prompt, completion, facts):
    """Rewards vowels; counts its calls in a file, and fails while another one is there."""
    with open("calls", "a") as file:
        file.write(repr((prompt, completion)) + "\\\\n")
    if os.path.exists("broken"):
        raise ValueError("no\\\\nluck")
    return sum(letter in "aeiou" for letter in completion) + facts.get("more", 0)

def none(prompt, completion, facts): return None
def nan(prompt, completion, facts): return math.nan
def text(prompt, completion, facts): return "1.0"
def raises(prompt, completion, facts): return 1 / 0
def ends(prompt, completion, facts): os._exit(3)
def large(prompt, completion, facts): return 1e9
def sleeps(prompt, completion, facts): time.sleep(60)
def whole(prompt, completion, facts): return True
def prints(prompt, completion, facts):
    print("noise", flush=True)
    os.system("echo more noise")
    return 0.5
number = 5
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a module of rewards and prompts; the current one."""
    (tmp_path / "rewards_of_mine.py").write_text(MODULE.replace("\\\\", "\\"))
    lines = [json.dumps({"prompt": f"{n}:", "more": n % 3}) for n in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judged(name: str, questions: list[Question], seconds: float = 60.0, processes: int = 2):
    with Judge(f"rewards_of_mine:{name}", processes=processes, seconds=seconds) as judge:
        return judge.rewards(questions)


QUESTIONS = [Question(f"p{n}", "ae" * n, json.dumps({"more": n})) for n in range(70)]


def test_rewards_come_in_order_from_several_processes(folder: Path) -> None:
    assert judged("vowels", QUESTIONS) == [3.0 * n for n in range(70)]
    assert len((folder / "calls").read_text().splitlines()) == 70
    assert judged("whole", QUESTIONS[:1]) == [1.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", "returned None, which is no number"),
        ("nan", "returned nan, which is no finite number"),
        ("text", "returned '1.0', which is no number"),
        ("raises", "raised ZeroDivisionError: division by zero"),
        ("ends", "ended the process it ran in"),
        ("large", "returned 1000000000.0, beyond 16384 in magnitude"),
        ("sleeps", r"took more than 0.2 seconds \(--reward.seconds\)"),
    ],
)
def test_what_is_no_reward_is_said_with_its_prompt(folder: Path, name: str, expected: str) -> None:
    """In one sentence that names function, prompt and completion."""
    limit = 0.2 if name == "sleeps" else 60.0
    ending = ", for the prompt 'p1' and the completion 'ae'; mend it"
    with pytest.raises(RewardError, match=f"rewards_of_mine:{name} {expected}{ending}"):
        judged(name, QUESTIONS[1:2], limit, processes=1)


def test_no_process_outlives_the_program(folder: Path) -> None:
    """Also one that ends without a word, during a call that does not come back."""
    (folder / "endless.py").write_text(
        "import time\n"
        "def reward(prompt, completion, facts):\n"
        "    open('called', 'w').close()\n"
        "    time.sleep(60)\n"
    )
    program = (
        "import os, threading, time\n"
        "from int_lm.tune.judge import Judge, Question\n"
        "judge = Judge('endless:reward', processes=1, seconds=0)\n"
        "ask = lambda: judge.rewards([Question('p', 'c', '{}')])\n"
        "threading.Thread(target=ask, daemon=True).start()\n"
        "while not os.path.exists('called'): time.sleep(0.05)\n"
        "os._exit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,  # which comes to its end when the process of rewards has ended, too
        check=False,
        timeout=30,
    )
    assert done.returncode == 3, done.stderr


def test_a_process_that_ends_with_nothing_to_do_is_told(folder: Path) -> None:
    with Judge("rewards_of_mine:whole", processes=2, seconds=60.0) as judge:
        idle = judge._workers[1]
        idle._process.kill()
        idle._process.wait()
        with pytest.raises(RewardError, match="ended while it had nothing to do; run the same"):
            judge.rewards(QUESTIONS[:1])


def test_a_process_that_is_never_ready_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apart from one that has ended."""
    monkeypatch.setattr(judge_module, "STARTING_SECONDS", 1.0)
    for name, content, expected in (
        ("waits", "import time; time.sleep(60)", "was not ready after 1 seconds; import"),
        ("leaves", "import os; os._exit(1)", "ended before it was ready; import"),
    ):
        (folder / f"{name}.py").write_text(content)
        with pytest.raises(UserError, match=expected):
            Judge(f"{name}:x", processes=1, seconds=60.0)


def test_a_task_of_the_users_own_is_judged_in_another_process(
    whole: tuple[Path, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that reward.seconds holds for it; a shipped one in this process."""
    asked = {}

    class AskedError(Exception):
        pass

    def judge(name: str, *, processes: int, seconds: float) -> None:
        asked[name] = processes
        raise AskedError

    monkeypatch.setattr(judge_module, "Judge", judge)
    few = ["--reward.heldout_prompts", "4"]
    for name in ("plugins.parity:PARITY", "sorting"):
        with pytest.raises(AskedError):
            command.main(["--run", str(whole[0]), "--reward", name, "--run.dir", "a", *TINY, *few])
    assert asked == {"plugins.parity:PARITY": 1, "sorting": 0}


def test_what_a_reward_prints_stands_in_nobodys_way(folder: Path, capfd: Any) -> None:
    """It goes to stderr, also what other programs print for it."""
    assert judged("prints", QUESTIONS[:2], processes=1) == [0.5, 0.5]
    output = capfd.readouterr()
    assert output.out == "" and output.err.count("more noise") == 2


def test_what_is_no_function_is_refused(folder: Path) -> None:
    with pytest.raises(
        UserError, match="rewards_of_mine:number is of type int, expected a function"
    ):
        judged("number", [])
    with pytest.raises(UserError, match="rewards_of_mine has no vovels"):
        judged("vovels", [])


# -- Prompts ---------------------------------------------------------------------------------------


def test_prompts_of_a_file_are_asked_in_turn_and_some_never(folder: Path) -> None:
    """Every training prompt once in a pass; the held-out ones are others; another seed, another
    order."""
    examples = [Example(*pair) for pair in readers.prompts("prompts.jsonl")]
    assert examples[4] == Example("4:", {"more": 1})
    settings = RewardConfig(prompts="prompts.jsonl", holdout=0.25)
    found = prompts.of_file(examples, settings, 3, seed=0)
    apart = {example.prompt for example in found.held_out}
    assert len(apart) == 2
    passes = [found.at(0) + found.at(1), found.at(2) + found.at(3)]
    for one in passes:
        asked = [example.prompt for example in one]
        assert len(set(asked)) == 6 and not apart & set(asked)
    assert passes[0] != passes[1]
    assert prompts.of_file(examples, settings, 6, seed=1).at(0) != passes[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "prompts.jsonl is empty"),
        ('{"prompt": "a"}\n{"prompt": ""}\n', "line 2: the record has no field prompt, or an empt"),
        ('{"prompt": "a"}\n{"text": "b"}\n', "line 2: the record has no field prompt"),
        ('{"prompt": 5}\n', "line 1: field 'prompt' holds a number, not text"),
        ('{"prompt": "a", "x": NaN}\n', "line 1: a number in it is not finite"),
        ('{"prompt": "a\\u0000"}\n', "line 1: the prompt holds a zero character"),
        ('{"prompt": "a"}\n{"prompt": "a"}\n', "holds 1 different prompt,"),
    ],
)
def test_bad_prompts_are_refused_with_their_line(folder: Path, content: str, expected: str) -> None:
    (folder / "prompts.jsonl").write_text(content)
    with pytest.raises(UserError, match=expected):
        read = [Example(*pair) for pair in readers.prompts("prompts.jsonl")]
        prompts.of_file(read, RewardConfig(prompts="prompts.jsonl"), 2, 0)


def test_prompts_and_completions_as_tokens() -> None:
    """Separators in front; a completion ends before its stop; a long prompt is refused."""
    coder = Coder(tokenization.load("bytes"), "\n", most=9)
    batch = coder.batch([Example("abc", None), Example("x", None)])
    assert batch.tokens_SN.tolist() == [[0] * 5 + [97, 98, 99], [0] * 7 + [120]]
    longer = coder.batch([Example("a" * 9, None)])
    assert (
        longer.tokens_SN.shape == (1, 16) and coder.batch(batch.examples).tokens_SN.shape[1] == 16
    )
    with pytest.raises(UserError, match=r"begins with 'aaaaaaaaaa' has 10 tokens, above .* 9"):
        coder.batch([Example("a" * 10, None)])
    ids = np.array([[49, 10, 0, 0], [49, 0, 0, 0], [49, 50, 51, 255]])
    assert [coder.completion(row) for row in ids] == ["1", "1", "123\ufffd"]
    assert coder.written(ids) == 2 + 2 + 4
    assert np.flatnonzero(coder.ends_V).tolist() == [0, 10]


def test_a_task_has_the_same_prompts_every_time() -> None:
    settings = RewardConfig(heldout_prompts=5)
    one, two = (prompts.of_task("sorting", settings, 4, seed=3) for _ in range(2))
    assert one.at(7) == two.at(7) != one.at(8)
    assert len(one.held_out) == 5 and one.sha256 == two.sha256
    assert tasks.of("sorting").reward(one.at(0)[0].prompt, "", one.at(0)[0].facts) < 1
    assert tasks.of("sorting").solution(one.at(0)[0], random.Random(0))


# -- The command -----------------------------------------------------------------------------------

TINY = ["--es.population", "8", "--es.members_per_stream", "4", "--es.sigma_shift", "1"]
TINY += ["--reward.tokens", "4", "--run.log_every", "1", "--run.eval_every", "2"]
TINY += ["--es.schedule", "constant", "--es.learning_rate", "2"]
TINY += ["--run.checkpoint_every", "1", "--run.steps", "4"]
OWN = ["--reward", "rewards_of_mine:vowels", "--prompts", "prompts.jsonl"]


def tune(base: Path, run: str, *more: str) -> None:
    command.main(["--run", str(base), *OWN, "--run.dir", run, *TINY, *more])


def test_a_checkpoint_cannot_name_code_to_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An architecture that stands in it alone is not imported."""
    (folder / "of_a_checkpoint.py").write_text("open('ran', 'w').close()\nX = 5\n")
    saved = {"config": {"model": {"architecture": "of_a_checkpoint:X"}}, "tuning": {}}
    monkeypatch.setattr(checkpoint, "steps", lambda place: [1])
    monkeypatch.setattr(checkpoint, "read_host", lambda place: saved)
    with pytest.raises(UserError, match=r"is code outside int_lm; .* --plugin of_a_checkpoint:X"):
        tune(folder, "new")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ({"text_sha256": "of text"}, "of text"),
        ({"text_sha256": "of prompts", "tuning": {"text_sha256": "of text"}}, "of text"),
        ({"text_sha256": "of prompts", "tuning": {"text_sha256": None}}, None),
        ({"text_sha256": "of prompts", "tuning": {}}, None),
        ({"text_sha256": "of prompts", "tuning": 5}, None),
    ],
)
def test_prompts_are_not_the_text_of_a_model(host: dict[str, Any], expected: str | None) -> None:
    assert run_module.text_of(host) == expected


def evaluated(capsys: pytest.CaptureFixture[str], *named: str) -> dict[str, Any]:
    eval_command.main([*named, "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_tuned_run_and_its_export_know_the_text_of_their_model(
    whole: tuple[Path, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`eval.py` measures them on what the model's own text held out, also after resumption, and
    after a tuning of the tuned run."""
    own = run_module.open_run(whole[0]).text_sha256
    one = ["--run.steps", "1", "--run.eval_every", "9", "--reward.tokens", "1"]
    tune(whole[0], "a", *one)
    tune(whole[0], "a", *one, "--run.steps", "2")
    tune(folder / "a", "b", *one)
    capsys.readouterr()
    before = evaluated(capsys, "--run", str(whole[0]))["text"]
    assert before["held_out_of"] == own
    for name in ("a", "b"):
        assert evaluated(capsys, "--run", name)["text"] == before
    export.export_run(run_module.open_run("b"), folder / "b", folder / "export")
    assert evaluated(capsys, "--export", "export")["text"] == before
    assert "held out of" in (folder / "export/README.md").read_text()


@pytest.mark.slow
def test_a_run_is_the_same_broken_off_or_not(
    whole: tuple[Path, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two devices at once, or one with a reward that fails in between: the same rows and weights.
    Every distinct completion is judged once a step, and the figures are those of the rows."""
    base = whole[0]
    tune(base, "a", "--json")
    output = capsys.readouterr()
    figures = json.loads(output.out)
    assert "nothing was learned" not in output.err
    logged = rows(folder / "a")
    assert [row["step"] for row in logged] == [0, 1, 2, 3, 4]
    assert figures["reward_before"] == logged[0]["heldout_reward"]
    assert figures["reward_after"] == logged[-1]["heldout_reward"]
    assert (figures["steps"], figures["prompts"]) == (4, 1)
    assert len({row["weights_hash"] for row in logged}) > 2
    assert rows(base)[-1]["weights_hash"] == logged[0]["weights_hash"]
    calls = (folder / "calls").read_text().splitlines()
    distinct = sum(round(row["distinct"] * 8) for row in logged[1:])  # type: ignore[operator]
    evaluated = sum("heldout_reward" in row for row in logged)
    assert len(calls) == distinct + evaluated

    tune(base, "b", "--distributed.devices", "1", "--run.steps", "2")
    (folder / "broken").touch()
    more = ["--distributed.devices", "1"]
    with pytest.raises(RewardError, match=r"raised ValueError: no luck, for the prompt '\d:'"):
        tune(base, "b", *more)
    assert checkpoint.latest_step(folder / "b/checkpoints") == 2
    (folder / "broken").unlink()
    tune(base, "b", *more)
    assert rows(folder / "b") == logged
    capsys.readouterr()
    with pytest.raises(SystemExit) as nothing_left:
        tune(base, "b", "--json", *more)
    assert nothing_left.value.code == 4
    assert {**json.loads(capsys.readouterr().out), "seconds": 0} == {**figures, "seconds": 0}

    tune(base, "equal", "--reward", "rewards_of_mine:whole", "--run.steps", "1", *more)
    assert "warning: nothing was learned in the last step: the two" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds a run of train.py, .* a new directory with --run.d"):
        tune(base, str(base))

    for flags, expected in (
        (["--reward", "rewards_of_mine:whole"], "reward.name 'rewards_of_mine:vowels', now"),
        (["--es.fitness", "rank"], "es.fitness 'standard', now 'rank'"),
        (["--reward.tokens", "5"], "reward.tokens 4, now 5"),
    ):
        with pytest.raises(UserError, match=expected):
            tune(base, "b", *flags)
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    with pytest.raises(UserError, match="was written with training text with sha256"):
        tune(base, "b")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--reward", "digit_sum"], "did you mean digit_sums?"),
        ([], "no reward is named; give --reward"),
        (["--reward", "rewards_of_mine:vowels"], "needs prompts; give a file of JSON lines"),
        (["--reward", "sorting", "--prompts", "prompts.jsonl"], "has prompts of its own"),
        (["--reward", "sorting", "--es.objective", "log_likelihood"], "has members write: reward"),
        (["--reward", "sorting", "--es.votes", "unit", "--es.readout", "exact"], "log-likelihood"),
        (["--reward", "sorting", "--run.init_from", "a"], "--run.init_from: model, text and start"),
        (["--model.words", "1", "--data.holdout", "0.2"], "--model.words, --data.holdout: model,"),
        ([*OWN, "--reward.prompt_tokens", "1"], "has 2 tokens, above reward.prompt_tokens 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    whole: tuple[Path, str], folder: Path, arguments: list[str], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        command.main(["--run", str(whole[0]), "--run.dir", "new", *TINY, *arguments])
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "new").exists()
