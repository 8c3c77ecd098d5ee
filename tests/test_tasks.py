"""Tasks: judges against independent ones, what is held out, the same examples everywhere."""

import functools
import hashlib
import itertools
import json
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example as case, given, settings, strategies as st

from data.records import Files
from int_lm import plugins, tasks
from int_lm.config import SourceConfig
from int_lm.errors import UserError
from int_lm.tasks import Task, __main__ as tasks_command, countdown, reasoning

NAMES = list(plugins.BUILT_IN["task"])
FULL = "plugins.parity:PARITY"
DIGESTS = {
    "countdown": "76b1db31371369ff",
    "countdown3": "c444fa33d6a6dc1e",
    "countdown4": "6bf548b406fb60e8",
    "countdown_graded": "76b1db31371369ff",
    "countdown3_graded": "c444fa33d6a6dc1e",
    "countdown4_graded": "6bf548b406fb60e8",
    "digit_sums": "53f41acf3551f41e",
    "sorting": "2329ab0efa7fd3f0",
    "brackets": "1ca959dbcb12a67b",
    "copying": "d35485faa4183279",
}

examples = st.tuples(st.sampled_from(NAMES), st.integers(0, 2**40), st.integers(0, 2**40))


@functools.cache
def known(name: str) -> Task:
    """A task: looking for its name takes longer than judging."""
    return tasks.of(name)


def drawn(name: str, seed: int, index: int) -> tuple[Task, tasks.Example, str]:
    """A task, its training example of a number, and a solution."""
    task = known(name)
    example = tasks.training(task, seed, index)
    return task, example, task.solution(example, tasks.generator("test", index))


# -- Judges ----------------------------------------------------------------------------------------


def is_expression_of(text: str, numbers: list[int], target: int) -> bool:
    """The judge of countdown once more: Python computes with fractions in place of numbers."""
    if not set(text) <= set("0123456789+-*/() ") or re.search(r"\*\*|//|(^|[-+*/(]) *[-+]", text):
        return False
    written = re.findall("[0-9]+", text)
    if any(number != str(int(number)) for number in written):
        return False
    try:
        value = eval(re.sub("([0-9]+)", r"Fraction(\1)", text.strip(" ")), {"Fraction": Fraction})
    except (SyntaxError, TypeError, ZeroDivisionError):
        return False
    return sorted(map(int, written)) == sorted(numbers) and value == target


def is_right(name: str, prompt: str, completion: str) -> bool:
    """Whether a completion solves a prompt, from the two texts alone."""
    if name.startswith("countdown"):
        numbers, _, target = prompt.removesuffix(":").partition(">")
        return is_expression_of(completion, [*map(int, numbers.split())], int(target))
    if name == "digit_sums":
        return completion == str(sum(int(d) * prompt.count(d) for d in "123456789"))
    if name == "sorting":
        rising = all(a <= b for a, b in itertools.pairwise(completion))
        counts = (prompt.count(d) == completion.count(d) for d in "0123456789")
        return rising and len(completion) == len(prompt) - 1 and all(counts)
    if name == "brackets":
        rest = prompt.removesuffix(":") + completion
        while any(pair in rest for pair in ("()", "[]", "{}")):
            rest = rest.replace("()", "").replace("[]", "").replace("{}", "")
        return rest == "" and not set(completion) & set("([{")
    assert name == "copying"
    return prompt == f"{completion};"


@given(examples, st.text())
def test_every_solution_is_solved(drawing: tuple[str, int, int], rest: str) -> None:
    """With its stop, without it, and whatever comes after; facts may have been JSON."""
    task, (prompt, facts), solution = drawn(*drawing)
    facts = json.loads(json.dumps(facts))
    assert task.stop not in solution and is_right(task.name, prompt, solution)
    for completion in (solution, solution + task.stop, solution + task.stop + rest):
        assert task.reward(prompt, completion, facts) >= task.solved


@settings(max_examples=200)
@given(examples, st.data())
def test_a_changed_solution_is_judged_as_by_another_judge(
    drawing: tuple[str, int, int], data: st.DataObject
) -> None:
    """Up to three characters are left out, put in, replaced, or change places."""
    task, (prompt, facts), text = drawn(*drawing)
    for _ in range(data.draw(st.integers(1, 3))):
        at, to = (data.draw(st.integers(0, len(text))) for _ in range(2))
        piece = data.draw(st.sampled_from(["", *"0123456789+-*/()[]{} abcz_.", text[to : to + 1]]))
        text = text[:at] + piece + text[at + data.draw(st.integers(0, 1)) :]
    reward = task.reward(prompt, text, facts)
    assert (reward >= task.solved) == is_right(task.name, prompt, text), text
    assert 0.0 <= reward <= 1.0


@given(examples, st.text() | st.text(alphabet="0123456789+-*/() ", max_size=80))
def test_any_text_is_judged(drawing: tuple[str, int, int], completion: str) -> None:
    """No text raises, and one that is wrong is never solved."""
    task, (prompt, facts), _ = drawn(*drawing)
    before = completion.partition(task.stop)[0]
    solved = task.reward(prompt, completion, facts) >= task.solved
    assert solved == is_right(task.name, prompt, before)


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9**9",
        "3**7",
        "3**7**5",
        "7//3*5",
        "7//3",
        "26",
        "2*13*1",
        "3*7+5+5-5",
        "3*7*5/5+5",
        "3+7+" + "9" * 10_000,
        "3+7+1000000000000000000",
        "(" * 100_000 + "3" + ")" * 100_000,
        "(" * 30 + "3" + ")" * 29,
        "3*" * 50_000 + "7",
        "3/0",
        "3/(7-7)",
        "__import__('os').system('true')",
        "x",
        "3 if 7 else 5",
        "3,7,5",
        "[3]*7",
        "3(7)(5)",
        "3*7+5j",
        "3*7+5.0",
        "3*7+0x5",
        "3*7+5e0",
        "03*7+5",
        "-3*-7+5",
        "+3*7+5",
        "3*7+5#",
        "3*7+5;3",
        "3*7+5)",
        "3\u00d77+5",
        "\u0663*\u0667+\u0665",
        "\uff13*\uff17+\uff15",
        "3*7+5\u00a0",
        "3*7\\\n+5",
        "3*7+5\x00",
        "3*7+5\r",
        "\ud8003*7+5",
        "",
        " ",
        "()",
    ],
)
def test_a_hostile_expression_earns_nothing_and_costs_nothing(text: str) -> None:
    """Powers, names, calls, signs, other digits, depth, length and division by zero."""
    facts, begin = {"numbers": [3, 5, 7], "target": 26}, time.process_time()
    assert countdown.reward("3 5 7>26:", text, facts) == 0.0
    assert countdown.graded("3 5 7>26:", text, facts) < 0.2
    assert time.process_time() - begin < 0.1


def test_rewards_of_form_are_graded() -> None:
    """No expression, one of other numbers, one of the numbers, and one that is right."""
    facts = {"numbers": [3, 3, 8, 8], "target": 24}
    rewards = [
        countdown.graded("", text, facts)
        for text in ("3*8+", "3*8", "3*8*8-3", "8 / (3 - 8/3)", "8/(3-8/3)\n3*8")
    ]
    assert rewards == [0.0, 0.1, 0.2, 1.0, 1.0]
    assert countdown.graded("", "3/(8-8)*3", facts) == 0.2
    [agreement] = {
        tasks.of(name).reward("", "abzd", {"answer": "abcde"})
        for name in ("sorting", "brackets", "copying")
    }
    assert agreement == 3 / 5


@settings(max_examples=20)
@given(st.tuples(*[st.integers(1, countdown.LARGEST)] * 3))
@case((1, 1, 1))
@case((1, 5, 5))
def test_all_targets_of_three_numbers_are_known(numbers: tuple[int, int, int]) -> None:
    """By brute force: every order, every pair of operations, both ways to put parentheses."""
    reached = set()
    for (a, b, c), (p, q) in itertools.product(
        itertools.permutations(numbers), itertools.product("+-*/", repeat=2)
    ):
        for inner, whole in (
            (f"Fraction({a}){p}{b}", f"(Fraction({a}){p}{b}){q}{c}"),
            (f"Fraction({b}){q}{c}", f"{a}{p}(Fraction({b}){q}{c})"),
        ):
            try:
                values = [Fraction(eval(text, {"Fraction": Fraction})) for text in (inner, whole)]
            except ZeroDivisionError:
                continue
            if all(value.denominator == 1 for value in values) and 1 <= values[1] <= 99:
                reached.add(int(values[1]))
    assert set(countdown.solutions(tuple(sorted(numbers)))) == reached


# -- Examples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_held_out_prompts_are_never_in_training(name: str) -> None:
    """Nor in text; they are different, and fewer are the beginning of more."""
    task = tasks.of(name)
    held_out = tasks.held_out(task, 500)
    prompts = {example.prompt for example in held_out}
    assert len(prompts) == 500 and all(map(tasks.is_held_out, prompts))
    assert tasks.held_out(task, 7) == held_out[:7]
    training = [tasks.training(task, seed, index) for seed in range(2) for index in range(300)]
    assert not prompts & {example.prompt for example in training}
    for index in range(100):
        text, example = tasks.text(task, 2, index), tasks.training(task, 2, index)
        assert text.startswith(example.prompt) and text.endswith(task.stop)
        assert task.reward(example.prompt, text[len(example.prompt) :], example.facts) == 1.0
    assert tasks.training(task, 0, 5) == training[5] != tasks.training(task, 1, 5)
    assert all(max(map(ord, prompt)) < 128 and len(prompt) < 30 for prompt in prompts)


def test_a_fifth_of_the_prompts_is_held_out() -> None:
    """Of prompts that nothing else has to do with."""
    held_out = sum(tasks.is_held_out(f"prompt {index}\ud800") for index in range(5000))
    assert 900 < held_out < 1100


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_the_same_everywhere(name: str) -> None:
    """A change here changes what is held out, and what runs were trained on."""
    task = tasks.of(name)
    rows = [tasks.text(task, 3, index) for index in range(50)]
    rows += [example.prompt for example in tasks.held_out(task, 50)]
    digest = hashlib.sha256("".join(rows).encode()).hexdigest()[:16]
    assert digest == DIGESTS[name]


def test_too_few_prompts_are_told() -> None:
    """Held-out ones that are not there, and a task whose every prompt is held out."""
    parity = plugins.attribute(FULL, "a task")
    with pytest.raises(UserError, match="300 held-out prompts of parity are asked for, 63 were"):
        tasks.held_out(parity, 300)
    prompt = tasks.held_out(parity, 1)[0]
    constant = parity._replace(example=lambda rng: prompt)
    with pytest.raises(UserError, match="all that are drawn are held out"):
        tasks.training(constant, 0, 0)


# -- Names and the command -------------------------------------------------------------------------


def test_tasks_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, and code in full once it is trusted."""
    monkeypatch.setattr(plugins, "_trusted", set())
    assert [tasks.of(name).name for name in NAMES] == NAMES
    for name, sentence in {
        "contdown": "the task is 'contdown', expected one of countdown, .*did you mean countdown?",
        FULL: "is code outside int_lm; if you trust it",
    }.items():
        with pytest.raises(UserError, match=sentence):
            tasks.of(name)
    plugins.trust(FULL, "plugins.parity:reward")
    assert tasks.of(FULL).name == "parity"
    with pytest.raises(UserError, match="is of type function, expected Task"):
        tasks.of("plugins.parity:reward")


def test_the_room_imports_no_array_library(run_command) -> None:
    """Neither do the tasks themselves."""
    done = run_command(
        "-c",
        "import sys\nfrom int_lm import tasks\n"
        "all(tasks.text(tasks.of(name), 0, 0) for name in tasks.names())\n"
        "assert not {'jax', 'numpy', 'yaml', 'reasoning_gym'} & set(sys.modules)",
    )
    assert done.returncode == 0, done.stderr


def test_text_is_written_for_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tasks take turns; what reads JSON lines finds every text; once more it is the same."""
    out = tmp_path / "text.jsonl"
    arguments = ["sorting", "copying", "--examples", "2001", "--seed", "4", "--out", str(out)]
    tasks_command.main(arguments)
    assert capsys.readouterr().out.startswith(f"{out}: 2,001 examples of sorting, copying, ")
    found = [
        texts[0].decode() for texts, _ in Files(SourceConfig("json", (str(out),))).texts(["text"])
    ]
    turns = [tasks.of("sorting"), tasks.of("copying")]
    expected = [tasks.text(turns[index % 2], 4, index) for index in range(2001)]
    assert found == expected
    before = out.read_bytes()
    with pytest.raises(UserError, match="exists already; replace it with --overwrite"):
        tasks_command.main(["copying", "--examples", "1", "--out", str(out)])
    assert out.read_bytes() == before
    tasks_command.main([*arguments, "--overwrite"])
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]


def test_lists_and_examples_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Every task with an example; examples of one; held-out prompts with what judges them."""
    tasks_command.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(NAMES)]] == NAMES
    tasks_command.main(["brackets", "--examples", "3"])
    text = capsys.readouterr().out
    assert text == "".join(tasks.text(tasks.of("brackets"), 0, index) for index in range(3))
    tasks_command.main(["countdown4", "copying", "--held_out", "--examples", "5"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for index, row in enumerate(rows):
        task = tasks.of(("countdown4", "copying")[index % 2])
        assert tasks.held_out(task, 3)[index // 2] == (row["prompt"], row["facts"])
        assert task.reward(row["prompt"], row["solution"], row["facts"]) == 1.0
    assert len(rows) == 5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["contdown"], "did you mean countdown?"),
        (["--examples", "5"], "name a task"),
        (["copying", "--examples", "0"], "--examples is 0, must be at least 1"),
        (["copying", "--examples", "many"], "invalid int value: 'many'"),
        (
            ["copying", "--out", "text.txt"],
            "--out is text.txt, expected the name of a file of JSON",
        ),
        (["copying", "--out", "text.jsonl"], "how many examples text.jsonl is to hold is not said"),
        (
            ["copying", "--examples", "9", "--out", "nowhere/text.jsonl"],
            "cannot write nowhere/text.jsonl: No such",
        ),
        (["copying", "--exampels", "5"], "unknown argument --exampels; did you mean --examples?"),
        (["countdown3", "--held_out", "--examples", "9999"], "9999 held-out prompts of countdown3"),
        (["reasoning_gym/nothing"], "reasoning"),
        (["nowhere:TASK"], "cannot be imported from nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_trusted", set())
    with pytest.raises(UserError) as caught:
        tasks_command.main(arguments)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_exit_code_of_a_mistake(run_command) -> None:
    """2, and one line."""
    done = run_command("-m", "int_lm.tasks", "contdown")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("int_lm.tasks: error: ") and done.stderr.count("\n") == 1


# -- The adapter to reasoning-gym ------------------------------------------------------------------


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """And lists no name of it."""
    monkeypatch.setattr(reasoning, "installed", lambda: False)
    assert list(reasoning.names()) == []
    with pytest.raises(UserError, match=r"install it with pip install 'int-lm\[reasoning\]'"):
        tasks.of("reasoning_gym/leg_counting")


def test_tasks_of_reasoning_gym() -> None:
    """Its judges, from facts that were JSON; not those that would run an answer as code."""
    pytest.importorskip("reasoning_gym")
    known = list(reasoning.names())
    assert len(known) > 50 and "reasoning_gym/countdown" not in known
    for name in ("leg_counting", "spell_backward", "maze", "sudoku"):
        task = tasks.of(f"reasoning_gym/{name}")
        example = tasks.training(task, 1, 2)
        assert example == tasks.training(task, 1, 2) != tasks.training(task, 1, 3)
        solution = task.solution(example, tasks.generator("test"))
        facts = json.loads(json.dumps(example.facts))
        assert task.reward(example.prompt, f"{solution}\n\nmore", facts) == task.solved
        assert task.reward(example.prompt, "\ud800?", facts) < task.solved
        assert task.stop not in solution and "\0" not in example.prompt
    assert reasoning.task("leg_counting", max_animals=3, min_animals=3).name.endswith("counting")
    for name, sentence in {
        "countdown": "runs answers as Python code",
        "leg_countin": "did you mean leg_counting?",
    }.items():
        with pytest.raises(UserError, match=sentence):
            tasks.of(f"reasoning_gym/{name}")
    with pytest.raises(UserError, match="cannot make leg_counting with"):
        reasoning.task("leg_counting", max_animals=-1)
    rubik = tasks.of("reasoning_gym/rubiks_cube")
    with pytest.raises(UserError, match="knows none"):
        tasks.text(rubik, 0, 0)
