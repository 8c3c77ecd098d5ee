"""lm-evaluation-harness with the model `int_lm`: the real package, on tasks in local files.

The figures are those of eval.py; a continuation is never left without a token.
"""

import contextlib
import dataclasses
import json
import random
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunCommand
from tiny_run import export_tiny_run, tiny_run

import eval as eval_command
import int_lm
from int_lm import export, runtime
from int_lm.config import ModelConfig
from int_lm.errors import UserError
from int_lm.harness import __main__ as command, lanes, likelihoods, writing
from int_lm.model.params import Parameters
from int_lm.run import Run, open_run
from tokenization import SentencePieceTokenizer, train
from tokenization.interface import identity

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from int_lm.harness.adapter import UNIT, IntLM

pytestmark = pytest.mark.filterwarnings("ignore")  # those of lm_eval
MODEL = ModelConfig(
    architecture="rwkv", width=8, layers=2, ffn_multiple=2, direct=(1, 2), direct_bits=9
)
WORDS = ["tree", "trees", "question", "questions", "answer", "water", "under", "understand"]
DOCUMENTS = [
    *("One.", "Zwei Wörter, 山", "a", " \n spaces \n", "x" * 40),
    " ".join(random.Random(3).choices(WORDS, k=90)),
]


@pytest.fixture(scope="module")
def pieces() -> SentencePieceTokenizer:
    generator = random.Random(4)
    lines = (" ".join(generator.choices(WORDS, k=9)) for _ in range(300))
    return train.train(["\n".join(lines).encode()], vocab_size=310, model_type="bpe")


def favoured(run: Run, follows: dict[str, str]) -> Run:
    """The run with an indifferent network, whose likeliest character after one is as given."""
    table = np.zeros_like(run.weights.tables["context_1"])
    for before, after in follows.items():
        [[row]] = runtime.context_rows(np.array([[ord(before)]]), [1], MODEL.direct_bits)
        table[row, ord(after)] = 100
    head = np.zeros_like(run.weights.network["head"])
    tables = {name: np.zeros_like(each) for name, each in run.weights.tables.items()}
    weights = Parameters({**run.weights.network, "head": head}, {**tables, "context_1": table})
    return dataclasses.replace(run, weights=weights)


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny_run(tiny_run(model=MODEL), tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def of_pieces(pieces: SentencePieceTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pieces")
    pieces.save(place / "tokenizer")
    run = dataclasses.replace(tiny_run(pieces.vocab_size, model=MODEL), tokenizer=identity(pieces))
    return export.export_model(run, place / "export", tokenizer_directory=place / "tokenizer")


def records(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def task(place: Path, name: str, file: Path, **fields: Any) -> None:
    """Write a task of the harness over a file of JSON lines."""
    written = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        **fields,
    }
    (place / f"{name}.yaml").write_text(json.dumps(written), encoding="utf-8")  # JSON is YAML


def evaluated(place: Path, name: str, model: Any, **options: Any) -> tuple[dict, list[dict]]:
    """(figures, samples) of a task."""
    manager = TaskManager(include_path=str(place), include_defaults=False)
    found = simple_evaluate(
        model=model, tasks=[name], task_manager=manager, bootstrap_iters=0, **options
    )
    assert found is not None
    return found["results"][name], found["samples"][name]


def by_eval(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `eval.py --json` says."""
    capsys.readouterr()
    eval_command.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.fixture(params=["bytes", "pieces", "run"])
def subject(request: pytest.FixtureRequest) -> tuple[str, str]:
    """("export" or "run", its directory)."""
    if request.param == "run":
        return "run", str(request.getfixturevalue("whole")[0])
    return "export", str(request.getfixturevalue(f"of_{request.param}"))


# Figures


def test_rolling_likelihoods_are_those_of_eval(subject, tmp_path: Path, capsys) -> None:
    """The same documents: the integer sums are equal, and so are the bits per byte."""
    kind, directory = subject
    file = records(tmp_path / "texts.jsonl", [{"text": text} for text in DOCUMENTS])
    metrics = [{"metric": name} for name in ("bits_per_byte", "byte_perplexity")]
    task(
        tmp_path,
        "rolling",
        file,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=metrics,
    )
    figures, samples = evaluated(tmp_path, "rolling", "int_lm", model_args={kind: directory})
    expected = by_eval(capsys, f"--{kind}", directory, "--text", str(file))
    units = [sample["resps"][0][0] / UNIT for sample in samples]
    assert sum(map(round, units)) == expected["log2_likelihood_units"]
    assert max(abs(unit - round(unit)) for unit in units) < 1e-6
    assert figures["bits_per_byte,none"] == pytest.approx(expected["bits_per_byte"], rel=1e-12)
    assert figures["byte_perplexity,none"] == pytest.approx(expected["byte_perplexity"], rel=1e-12)
    assert len(samples) == expected["documents"] == len(DOCUMENTS)


def test_pairs_are_those_of_eval(subject, tmp_path: Path, capsys) -> None:
    """Sentences without a context are documents: their ends count, as in `eval.py --pairs`."""
    kind, directory = subject
    generator = random.Random(6)
    rows = [
        {f"sentence_{name}": " ".join(generator.choices(WORDS, k=3)) for name in ("good", "bad")}
        for _ in range(60)
    ]
    file = records(tmp_path / "pairs.jsonl", rows)
    task(
        tmp_path,
        "pairs",
        file,
        output_type="multiple_choice",
        doc_to_text="",
        doc_to_target=0,
        doc_to_choice="{{[sentence_good, sentence_bad]}}",
        target_delimiter="",
        metric_list=[{"metric": "acc"}],
    )
    figures, _ = evaluated(tmp_path, "pairs", "int_lm", model_args={kind: directory})
    expected = by_eval(capsys, f"--{kind}", directory, "--pairs", str(file))
    assert figures["acc,none"] == expected["pair_accuracy"]
    assert 0.1 < expected["pair_accuracy"] < 0.9


def test_last_words_are_those_of_eval(tmp_path: Path, capsys) -> None:
    """A word counts if each of its tokens, and the space before it, is the likeliest."""
    directory = str(
        export_tiny_run(favoured(tiny_run(model=MODEL), {"x": " ", " ": "y"}), tmp_path)
    )
    texts = ["ab cx y", "ab cx z", "ab cd y", "x y", "ab  x y"]
    file = records(tmp_path / "words.jsonl", [{"text": text} for text in texts])
    task(
        tmp_path,
        "words",
        file,
        output_type="loglikelihood",
        doc_to_text="{{text.split(' ')[:-1]|join(' ')}}",
        doc_to_target="{{' '+text.split(' ')[-1]}}",
        metric_list=[{"metric": "acc"}, {"metric": "perplexity"}],
    )
    figures, samples = evaluated(tmp_path, "words", IntLM(export=directory))
    expected = by_eval(capsys, "--export", directory, "--last_word", str(file))
    assert figures["acc,none"] == expected["last_word_accuracy"] == 3 / 5
    assert [sample["acc"] for sample in samples] == [1, 0, 0, 1, 1]


# Borders


class Template(TemplateLM):
    """The harness's own border between context and continuation, with the same tokenizer."""

    eot_token_id = 0
    generate_until = loglikelihood_rolling = None  # type: ignore[assignment]

    def __init__(self, tokenizer: SentencePieceTokenizer, model: runtime.Model) -> None:
        super().__init__()
        self.pieces, self.model = tokenizer, model

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        return self.pieces.encode(string.encode()).tolist()

    def _loglikelihood_tokens(self, requests: list, **_) -> list[tuple[float, bool]]:
        documents = [np.array(context + rest) for _, context, rest in requests]
        firsts = [len(context) for _, context, _ in requests]
        units = runtime.log2_likelihoods(self.model, documents, firsts=firsts)
        return [(unit * UNIT, False) for unit in units.tolist()]


def test_a_continuation_is_never_left_without_a_token(
    of_pieces: Path, pieces: SentencePieceTokenizer, tmp_path: Path
) -> None:
    """All of "trees" is one piece, as "tree" alone is: of the continuation "s" nothing is left.

    By the harness's border that choice costs 0 and always wins; here it costs what its token does.
    """
    whole, alone = pieces.encode(b"a trees"), pieces.encode(b"a tree")
    assert len(whole) == len(alone)
    model = runtime.load(of_pieces)
    template, ours = Template(pieces, model), IntLM(export=of_pieces)
    assert template._encode_pair("a tree", "s") == (alone.tolist(), [])

    row = {"context": "a tree", "choices": ["s", " under", "question"]}
    file = records(tmp_path / "choices.jsonl", [row])
    task(
        tmp_path,
        "choices",
        file,
        output_type="multiple_choice",
        doc_to_text="{{context}}",
        doc_to_target=0,
        doc_to_choice="{{choices}}",
        target_delimiter="",
        metric_list=[{"metric": "acc"}],
    )
    figures, [sample] = evaluated(tmp_path, "choices", template)
    assert sample["filtered_resps"][0][0] == 0 and figures["acc,none"] == 1
    _, [sample] = evaluated(tmp_path, "choices", ours)
    for choice, (found, _) in zip(row["choices"], sample["filtered_resps"], strict=True):
        ids = [*alone.tolist(), *pieces.encode(choice.encode()).tolist()]
        [expected] = runtime.log2_likelihoods(model, [ids], firsts=[len(alone)]).tolist()
        assert found == expected * UNIT < 0


def test_spaces_at_the_end_of_a_context_begin_the_continuation(of_pieces: Path) -> None:
    """As the harness has it for all models: the pieces of text that the model was trained on."""
    ours = IntLM(export=of_pieces)
    moved, plain = ours._measured([ours._pair("a tree ", "under"), ours._pair("a tree", " under")])
    assert moved == plain
    with_end, without = ours._measured([ours._pair("", "under"), (b"", b"under", False)])
    assert with_end[0] < without[0]
    assert ours._measured([ours._pair("  ", "under")]) == ours._measured([(b"", b"  under", False)])


def test_the_end_of_a_document_can_be_left_out(of_bytes: Path) -> None:
    """With `end=False` only the text counts, as for most models of the harness."""
    texts = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in (*DOCUMENTS, "")]
    model = runtime.load(of_bytes)
    ids = [text.encode() for text in DOCUMENTS]
    for end, firsts in ((True, None), (False, [0] * len(ids))):
        found = IntLM(export=of_bytes, end=end).loglikelihood_rolling(texts)
        expected = runtime.log2_likelihoods(model, ids, firsts=firsts) * UNIT
        assert found == [*expected.tolist(), 0.0]


# Lanes


def requests_of(generator: np.random.Generator) -> tuple[list[np.ndarray], list]:
    """Contexts and continuations of all lengths, more than fit side by side."""
    lengths = [0, 1, 2, 15, 16, 17, 70, 300, *generator.integers(0, 40, 300)]
    contexts = [generator.integers(1, 256, length) for length in lengths]
    continuations = [
        likelihoods.Continuation(int(index), generator.integers(1, 256, length), bool(end))
        for index, length, end in zip(
            [*generator.permutation(len(contexts)), *[7, 0, 3] * 20],
            [0, 1, 16, 17, 33, 280, *generator.integers(1, 30, 400)],
            [1, *generator.integers(0, 2, 999)],
            strict=False,
        )
    ]
    return contexts, continuations


@pytest.mark.parametrize("kind", [lanes.Numpy, lanes.Jax])
def test_together_as_one_by_one(kind: type, of_bytes: Path) -> None:
    """Sums and hits are those of whole documents, whatever stands beside them."""
    model = runtime.load(of_bytes)
    side_by_side = lanes.Numpy(model) if kind is lanes.Numpy else lanes.Jax(tiny_run(model=MODEL))
    contexts, continuations = requests_of(np.random.default_rng(8))
    read: list[int] = []
    units, greedy = likelihoods.measured(side_by_side, contexts, continuations, read.append)
    documents = [np.concatenate([contexts[each.context], each.ids]) for each in continuations]
    firsts = [len(contexts[each.context]) for each in continuations]
    texts = runtime.log2_likelihoods(model, documents, firsts=firsts)
    whole = runtime.log2_likelihoods(model, documents)
    before = runtime.log2_likelihoods(
        model, [contexts[each.context] for each in continuations], firsts=[0] * len(documents)
    )
    ends = np.array([each.end for each in continuations])
    np.testing.assert_array_equal(units, np.where(ends, whole - before, texts))
    hits = runtime.log2_likelihoods(model, documents, firsts=firsts, metric=runtime.greedy_hit)
    assert greedy.tolist() == [n == len(e.ids) for n, e in zip(hits, continuations, strict=True)]
    assert sum(read) == sum(map(len, contexts)) + sum(len(e.ids) + e.end for e in continuations)


def test_a_run_and_its_export_answer_alike(whole, tmp_path: Path) -> None:
    """JAX and NumPy: the same floats, and the same texts."""
    directory = export.export_run(open_run(whole[0]), whole[0], tmp_path / "export")
    models = IntLM(run=whole[0]), IntLM(export=directory)
    asked = [("eta", "oin"), ("", "shrdlu"), ("eta", "n"), ("eta", "oin")]
    found = [
        (
            model.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in asked]),
            model.generate_until(
                [
                    Instance("generate_until", {}, (text, {"max_gen_toks": 20, **settings}), 0)
                    for text in ("", "eta", "oin shr")
                    for settings in ({}, {"do_sample": True}, {"temperature": 0.5, "seed": 3})
                ]
            ),
            model.get_model_info(),
        )
        for model in models
    ]
    assert found[0] == found[1]
    assert found[0][0][0] == found[0][0][3] and len(set(found[0][0])) == 3


# Texts


def test_texts_are_those_of_sample(of_pieces: Path) -> None:
    """Greedy and drawn, ended by a stop string, by the length, or by the model."""
    model, ours = int_lm.load(of_pieces), IntLM(export=of_pieces)
    prompts = ["", "a tree", *(" ".join(WORDS[:count]) for count in (3, 9))]
    settings = {"do_sample": True, "temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 5}
    drawn = {name: value for name, value in settings.items() if name != "do_sample"}
    texts = [model.sample(prompt, tokens=30, **drawn) for prompt in prompts]
    [stop, *_] = re.findall("[a-z]{2}", texts[1][3:])
    asked = [
        Instance("generate_until", {}, (prompt, {"until": until, "max_gen_toks": 30, **more}), 0)
        for until in ([], stop, ["\N{SNOWMAN}", stop, ""])
        for more in (settings, {})
        for prompt in prompts
    ]
    greedy = [model.sample(prompt, tokens=30, temperature=0) for prompt in prompts]
    expected = [*texts, *greedy, *(text.split(stop)[0] for text in [*texts, *greedy] * 2)]
    assert ours.generate_until(asked) == expected
    assert any(stop in text for text in texts) and len(set(texts)) == len(texts)


def test_nothing_is_written_after_a_stop_string(of_bytes: Path) -> None:
    """A stop string of several tokens ends a text as soon as it is complete."""
    text = int_lm.load(of_bytes).sample(b"ab", tokens=40, temperature=1.0, seed=1)
    stop = text[20:23]
    place = text.find(stop)
    sampler = runtime.Sampler(temperature=1.0, seed=1)
    wish = writing.Wish(np.frombuffer(b"ab", np.uint8), sampler, 40, (stop,))
    read: list[int] = []
    numpy = lanes.Numpy(runtime.load(of_bytes))
    [(number, written)] = writing.texts(numpy, [wish], bytes, read.append)
    assert (number, written) == (0, text[:place])
    assert sum(read) == len(b"ab") + place + len(stop)


def test_equal_requests_for_draws_get_other_seeds(of_bytes: Path) -> None:
    """A task that repeats a request wants several texts; greedy ones are written once."""
    ours, model = IntLM(export=of_bytes), int_lm.load(of_bytes)
    asked = [Instance("generate_until", {}, ("ab", {"do_sample": True, "max_tokens": 9}), 0)] * 3
    expected = [model.sample("ab", tokens=9, temperature=1.0, seed=seed) for seed in range(3)]
    assert ours.generate_until(asked) == expected
    assert len(set(expected)) == 3


# Mistakes and the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either export=DIR or run=DIR"),
        ({"export": "a", "run": "b"}, "give either export=DIR or run=DIR"),
        ({"export": "nowhere"}, "nowhere is no export that can be read"),
        ({"run": "nowhere"}, "nowhere holds no run"),
        ({"export": "a", "step": 3}, "an export holds one step"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        IntLM(**arguments)


def test_wrong_requests_are_refused(of_bytes: Path, capsys) -> None:
    """An empty choice would be likelier than any text; a zero byte would begin a document."""
    ours = IntLM(export=of_bytes)
    for pair, message in (
        (("a", ""), "a continuation of 'a' is empty"),
        (("a\0", "b"), "a context of a task, .* has a zero byte"),
        (("a", "\ud800"), "a continuation of a task, .* is no UTF-8"),
    ):
        with pytest.raises(UserError, match=message):
            ours.loglikelihood([Instance("loglikelihood", {}, pair, 0)])
    for settings, message in (
        ({"max_gen_toks": 0}, "asks for 0 tokens"),
        ({"do_sample": True, "top_p": 2.0}, "generation argument top_p is 2.0, must be"),
    ):
        with pytest.raises(UserError, match=message):
            ours.generate_until([Instance("generate_until", {}, ("a", settings), 0)])
    with pytest.raises(UserError, match="no chat template"):
        ours.chat_template(True)
    ours.generate_until([Instance("generate_until", {}, ("a", {"num_beams": 1, "until": []}), 0)])
    assert "argument num_beams means nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_runs_a_task(of_bytes: Path, tmp_path: Path, run_command: RunCommand) -> None:
    """As a user starts it: a task of one's own, results in a file. An unknown one is a sentence."""
    file = records(tmp_path / "texts.jsonl", [{"text": text} for text in DOCUMENTS])
    task(
        tmp_path,
        "own_texts",
        file,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    common = ["-m", "int_lm.harness", "--export", of_bytes, "--include_path", tmp_path]
    common += ["--output_path", tmp_path / "out"]
    done = run_command(*common, "--tasks", "own_texts", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    [results] = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())
    expected = int_lm.load(of_bytes).evaluate(DOCUMENTS)["bits_per_byte"]
    assert found["results"]["own_texts"]["bits_per_byte,none"] == pytest.approx(expected)
    assert found["config"]["weights_hash"] == runtime.load(of_bytes).config["weights_hash"]
    assert "own_texts" in done.stdout and "bits_per_byte" in done.stdout

    done = run_command(*common, "--tasks", "no_such_task")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "int_lm.harness: error: lm_eval stopped with ValueError" in done.stderr
    assert "no_such_task" in done.stderr.splitlines()[-1]


def test_the_model_is_not_named_twice(capsys) -> None:
    """The flags of lm_eval that choose a model are refused, also as --flag=value."""
    for flag in ("--model", "--model_args=a=b", "-a"):
        with pytest.raises(UserError, match="which model"):
            command.main(["--export", "a", flag, "hf"])
    with contextlib.suppress(SystemExit):
        command.main(["--help"])
    assert "--include_path" in capsys.readouterr().out
