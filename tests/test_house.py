"""The house rules that a program can check: import order, floats, sizes, paths, links.

Ruff has the rules about printing, arguments and relative imports (pyproject.toml).

Each rule is a function from source text to a list of problems ("line 3: ..."), so that a test can
show that it catches what it is for.
"""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from int_lm import config

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("int_lm", "data", "tokenization")
LINES_AT_MOST = 350
LINES_BY_EXCEPTION = {
    "runtime": 600,  # one file by contract: a copy of it goes into every export
}

# Where reals are: made into integers once, shown, or set up for sampling.
FLOAT_ZONES = {
    *("arithmetic/constants", "config/schema", "config/load", "config/validate"),
    *("measure/code_length", "measure/evaluate", "method/schedules"),
    *("training/runlog", "training/plan", "training/cautions", "training/pooling"),
    *("training/trainer", "sample/__init__", "sample/__main__", "export/card"),
    *("tune/tuner", "tune/worker", "plot/picture"),
    *("measure/rate", "doctor/__init__", "doctor/machine"),
    # environments are floats; control/border makes integers of them
    *("control/acrobot", "control/border", "control/cart_pole", "control/pendulum"),
    *("control/controller", "control/from_brax", "control/from_gymnax", "control/from_jumanji"),
}
FLOAT_FUNCTIONS = {
    "model/params": {"initialise"},
    "method/update/threshold": {"alpha_at", "vote_threshold"},
    "method/update/adaptive": {"learning_rate"},
    "method/update/carry": {"learning_rate"},
    "control/environment": {"trial"},
    "measure/diagnose": {"summary"},
    "tasks/countdown": {"value_of"},  # of fractions
    "tasks/task": {"agreement"},
    "runtime": {"integer_dot", "operands"},
}
FLOAT_DTYPE = re.compile(r"b?float\d*|double|half|single|floating|inexact|complex\w*")
FLOAT_MATHS = re.compile(
    r"exp|exp2|expm1|log|log2|log10|log1p|logsumexp|logistic|sqrt|rsqrt|cbrt|power|reciprocal|"
    r"divide|true_divide|mean|average|median|std|var|tanh|sigmoid|softmax|log_softmax"
)
ARRAY_MODULES = {"jnp", "np", "numpy", "lax", "jax"}
ARRAY_NAME = re.compile(r"[a-z]\w*_[A-Z][A-Z0-9]*")  # a name that carries its axes: h_PD

# Built from pieces, so that this file does not contain what it looks for.
MACHINE_PATH = re.compile(
    r"(?<![\w.])/(?:" + "|".join(("work", "root", "home", "Users")) + r")/[\w.]"
)

# [text](target) of Markdown, and a document that a comment or a docstring names.
LINK = re.compile(r"\]\(([^()\s]+)\)")
MENTION = re.compile(r"\bdocs/[\w./-]*\.md(?:#[\w-]+)?")

Rule = Callable[[str, str], list[str]]


def within(node: ast.AST, functions: tuple[str, ...] = ()) -> Iterator[tuple[ast.AST, set[str]]]:
    """Every node below `node`, with the names of the functions it stands in."""
    for child in ast.iter_child_nodes(node):
        yield child, set(functions)
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from within(child, (*functions, child.name) if is_function else functions)


def imports(source: str) -> Iterator[tuple[int, str, set[str]]]:
    """(line, dotted name, enclosing functions) of everything that `source` imports."""
    for node, functions in within(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, functions
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}", functions


def used_names(node: ast.AST) -> set[str]:
    """Names an expression takes values from; the shape of an array is no value of it."""
    if isinstance(node, ast.Attribute) and node.attr in {"shape", "ndim", "size"}:
        return set()
    if isinstance(node, ast.Name):
        return {node.id}
    return set().union(*map(used_names, ast.iter_child_nodes(node)))


def float_problems(source: str, module: str) -> list[str]:
    """Floating dtypes, float maths and true divisions outside the declared float zones."""
    if module in FLOAT_ZONES:
        return []
    has_paths = any(name.startswith("pathlib") for _, name, _ in imports(source))
    problems = []
    for node, functions in within(ast.parse(source)):
        found = None
        if isinstance(node, ast.Attribute):
            of_arrays = ast.unparse(node.value).split(".")[0] in ARRAY_MODULES
            if of_arrays and (FLOAT_DTYPE.fullmatch(node.attr) or FLOAT_MATHS.fullmatch(node.attr)):
                found = ast.unparse(node)
            elif node.attr in {"mean", "std", "var"}:
                found = f".{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = node.value if re.fullmatch(r"b?float\d+", node.value) else None
        elif isinstance(node, ast.Call):
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            dtypes = [k.value for k in node.keywords if k.arg == "dtype"]
            dtypes += node.args if method == "astype" else []
            found = "dtype float" if "float" in map(ast.unparse, dtypes) else None
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            # Dividing arrays never; paths and numbers of `math` (a shift, made once) may be.
            names = used_names(node)
            arrays = any(name in ARRAY_MODULES or ARRAY_NAME.fullmatch(name) for name in names)
            harmless = not arrays and (has_paths or "math" in names)
            found = None if harmless else f"`{ast.unparse(node)}`"
        if found and not functions & FLOAT_FUNCTIONS.get(module, set()):
            problems.append(f"line {node.lineno}: {found}")  # type: ignore[attr-defined]
    return problems


def length_problems(source: str, module: str) -> list[str]:
    """A file that cannot be read in one sitting."""
    lines, most = len(source.splitlines()), LINES_BY_EXCEPTION.get(module, LINES_AT_MOST)
    return [f"line {lines}: more than {most} lines"] if lines > most else []


def path_problems(source: str, module: str) -> list[str]:
    """Lines that name a directory of the machine they were written on."""
    return [
        f"line {number}: {line.strip()}"
        for number, line in enumerate(source.splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]


def without_code(markdown: str) -> str:
    """Markdown with its blocks and spans of code blanked; lines keep their numbers."""
    markdown = re.sub(
        r"^(```|~~~).*?^\1", lambda block: "\n" * block[0].count("\n"), markdown, flags=re.M | re.S
    )
    return re.sub(r"`[^`\n]*`", "", markdown)


def anchors(markdown: str) -> set[str]:
    """Names by which links reach the headings of a Markdown text, as GitHub makes them."""
    found: dict[str, int] = {}
    fenced = re.sub(r"^(```|~~~).*?^\1", "", markdown, flags=re.M | re.S)
    for heading in re.findall(r"^#{1,6} +(.*?)[ #]*$", fenced, flags=re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found[name] = found.get(name, -1) + 1
        if found[name]:
            found[f"{name}-{found[name]}"] = 0
    return set(found)


def target_problem(target: str, source: str, folder: Path) -> str | None:
    """Why `target`, relative to `folder`, leads nowhere; a bare #anchor is one of `source`."""
    path, _, anchor = target.partition("#")
    file = (folder / path).resolve() if path else None
    if file and not file.is_relative_to(ROOT):
        return f"{target} leads out of the repository"
    if file and not file.exists():
        return f"{target} does not exist"
    text = file.read_text(encoding="utf-8") if file and file.suffix == ".md" else source
    return f"{target} has no such heading" if anchor and anchor not in anchors(text) else None


def link_problems(source: str, name: str) -> list[str]:
    """Links of the Markdown file `name` to files or headings that are not there."""
    found = [
        (number, target_problem(target, source, (ROOT / name).parent))
        for number, line in enumerate(without_code(source).splitlines(), start=1)
        for target in LINK.findall(line)
        if not re.match(r"\w+:", target)
    ]
    return [f"line {number}: {problem}" for number, problem in found if problem]


def mention_problems(source: str, name: str) -> list[str]:
    """Documents, and headings of them, that a program or a configuration names in vain."""
    found = [
        (number, target_problem(target, source, ROOT))
        for number, line in enumerate(source.splitlines(), start=1)
        for target in MENTION.findall(line)
    ]
    return [f"line {number}: {problem}" for number, problem in found if problem]


def modules(*packages: str) -> Iterator[tuple[Path, str]]:
    """(file, name) of the modules of packages; the name is as `models/egg`."""
    for package in packages:
        for file in sorted((ROOT / package).rglob("*.py")):
            yield file, file.relative_to(ROOT / package).with_suffix("").as_posix()


def broken(rule: Rule, files: Iterator[tuple[Path, str]]) -> list[str]:
    """All problems of `rule` in `files`, each with its file."""
    return [
        f"{file.relative_to(ROOT)} {problem}"
        for file, module in files
        for problem in rule(file.read_text(encoding="utf-8"), module)
    ]


@pytest.mark.parametrize(
    ("rule", "packages"),
    [
        (float_problems, ["int_lm"]),
        (length_problems, PACKAGES),
    ],
)
def test_modules_keep_the_rule(rule: Rule, packages: list[str]) -> None:
    """No module of the packages breaks the rule."""
    assert broken(rule, modules(*packages)) == []


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    """Compare the packages in `directory` with the import contracts of its pyproject.toml."""
    program = "import sys; from importlinter import cli; sys.exit(cli.lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=directory, capture_output=True, text=True, timeout=120
    )


def test_modules_keep_their_import_order() -> None:
    """Every import, late ones too, follows the contracts of [tool.importlinter]."""
    linted = lint_imports(ROOT)
    assert linted.returncode == 0, linted.stdout + linted.stderr


# What each module may not import, at the top or in a function.
BREACHES = {
    "int_lm.arithmetic.noise": "int_lm.model.params",
    "int_lm.model.params": "int_lm.config",
    "int_lm.model.egg": "int_lm.model.rwkv",
    "int_lm.model.layers": "int_lm.method.evolve",
    "int_lm.method.estimator.trace": "int_lm.method.estimator.unit",
    "int_lm.method.estimator.unit": "int_lm.method.estimator.exact",
    "int_lm.method.recipe": "int_lm.method.population",
    "int_lm.method.placement": "int_lm.config",
    "int_lm.files.digest": "int_lm.run",
    "int_lm.runtime": "int_lm.errors",
    "int_lm.measure.evaluate": "data.streams",
    "int_lm.config.load": "tokenization.byte",
    "data.corpus": "data.rolling",
    "data.documents": "data.text",
    "data.shards": "int_lm.training.runlog",
    "data.make": "tokenization",
    "data.open": "tokenization.byte",
    "tokenization.byte": "tokenization.sentence_piece",
    "tokenization.interface": "data.documents",
}


@pytest.fixture(scope="module")
def breached(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What import-linter says of a copy of the packages with all breaches, and newcomers."""
    root = tmp_path_factory.mktemp("breached")
    shutil.copy(ROOT / "pyproject.toml", root)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for module, target in BREACHES.items():
        with (root / f"{module.replace('.', '/')}.py").open("a") as file:
            file.write(f"\n\ndef breach():\n    import {target}\n")
    for package in ("int_lm", "int_lm/method", "data", "tokenization"):
        (root / package / "newcomer.py").write_text("import os\n")
    linted = lint_imports(root)
    assert linted.returncode == 1, linted.stdout + linted.stderr
    return linted.stdout


@pytest.mark.parametrize("module", BREACHES)
def test_a_breach_of_the_import_order_is_caught(breached: str, module: str) -> None:
    """Each forbidden import is reported, with its line."""
    assert re.search(rf"{re.escape(module)} -> {re.escape(BREACHES[module])}\S* \(l", breached)


def test_a_module_without_a_place_is_caught(breached: str) -> None:
    """In every package whose order is complete."""
    for package in ("int_lm", "int_lm.method", "data", "tokenization"):
        assert re.search(rf"{re.escape(package)}\.newcomer\b", breached), package


def test_texts_name_no_directory_of_the_machine() -> None:
    """README, documents, configurations, programs and build files are tied to no machine."""
    names = ["*.md", "*.py", "*.toml", "Makefile", ".ci/run", "docs/**/*.*", "configs/**/*.*"]
    names += [f"{folder}/**/*.py" for folder in (*PACKAGES, "benchmarks", "tests")]
    files = {file for name in names for file in ROOT.glob(name) if file.is_file()}
    texts = [file for file in sorted(files) if file.suffix not in {".png", ".svg"}]
    assert broken(path_problems, ((file, file.stem) for file in texts)) == []


def test_links_of_documents_lead_somewhere() -> None:
    """Every link of a Markdown file has a file and a heading, also those of the log."""
    names = ["*.md", "docs/**/*.md", *(f"{folder}/**/*.md" for folder in ("tests", "benchmarks"))]
    files = sorted({file for name in names for file in ROOT.glob(name)})
    assert ROOT / "README.md" in files
    assert any(file.parent == ROOT / "docs" / "log" for file in files)
    documents = ((file, file.relative_to(ROOT).as_posix()) for file in files)
    assert broken(link_problems, documents) == []


def test_the_index_of_the_log_names_every_entry() -> None:
    """`docs/log.md` is the way in: an entry that it does not link is not found."""
    index = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    linked = {target.partition("log/")[2] for target in LINK.findall(index)}
    for month in sorted((ROOT / "docs" / "log").glob("*.md")):
        text = month.read_text(encoding="utf-8")
        entries = anchors("\n".join(re.findall(r"^## .*$", text, re.MULTILINE)))
        missing = [entry for entry in entries if f"{month.name}#{entry}" not in linked]
        assert entries and missing == []


def test_documents_that_programs_name_exist() -> None:
    """A document, or a heading of one, that a comment, docstring or message names is there."""
    names = ["*.py", "Makefile", "configs/**/*.yaml"]
    names += [f"{folder}/**/*.py" for folder in (*PACKAGES, "benchmarks", "tests")]
    files = sorted({file for name in names for file in ROOT.glob(name)} - {Path(__file__)})
    assert broken(mention_problems, ((file, file.stem) for file in files)) == []


def test_shipped_configurations_are_valid() -> None:
    """Every YAML file in configs/ loads, and describes a run that can be trained."""
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    assert ROOT / "configs" / "quickstart.yaml" in files
    for file in files:
        config.validate(config.load(file))


BAD = [
    (float_problems, "method/votes", "y = x.astype(jnp.float32)"),
    (float_problems, "method/votes", "y = np.zeros(3, np.float64)"),
    (float_problems, "method/votes", "y = jnp.zeros(3, dtype='bfloat16')"),
    (float_problems, "method/votes", "y = x.astype(float)"),
    (float_problems, "method/votes", "y = jnp.zeros(3, dtype=float)"),
    (float_problems, "method/votes", "y = jax.numpy.sqrt(x)"),
    (float_problems, "model/egg", "y = jnp.mean(x)"),
    (float_problems, "model/egg", "y = x.mean()"),
    (float_problems, "model/egg", "y = jax.nn.softmax(x)"),
    (float_problems, "model/egg", "y = x / 2"),
    (float_problems, "model/egg", "x /= 2"),
    (float_problems, "files/checkpoint", "from pathlib import Path\ny = h_PD / 2"),
    (float_problems, "files/checkpoint", "from pathlib import Path\ny = 2 / jnp.sum(h)"),
    (float_problems, "model/perturb", "import math\ny = h_PD / math.log2(n)"),
    (float_problems, "runtime", "def log2(x):\n    return x.astype(np.float64)"),
    (float_problems, "model/params", "scale = np.float64(2)"),
    (float_problems, "measure/diagnose", "def histograms(x):\n    return x.mean()"),
    (length_problems, "method/votes", "x = 1\n" * (LINES_AT_MOST + 1)),
    (length_problems, "runtime", "x = 1\n" * (LINES_BY_EXCEPTION["runtime"] + 1)),
    (path_problems, "README", "cd " + "/home" + "/ada/int_lm && make train"),
    (path_problems, "README", "(" + "/root" + "/.cache)"),
    (link_problems, "README.md", "see [method](docs/methods.md)"),
    (link_problems, "README.md", "see [method](docs/method.md#no-such-heading)"),
    (link_problems, "README.md", "# Start\nsee [below](#the-start)"),
    (link_problems, "README.md", "```\n# Start\n```\n[that is code](#start)"),
    (link_problems, "docs/method.md", "![picture](docs/learning.svg)"),
    (link_problems, "docs/log/2026-11.md", "[table](determinism.md#faults)"),
    (link_problems, "docs/method.md", "[away](../../elsewhere)"),
    (mention_problems, "sample", '"""See docs/methods.md."""'),
    (mention_problems, "sample", "# docs/determinism.md#mistakes"),
]
GOOD = [
    (float_problems, "arithmetic/constants", "y = np.sqrt(np.float64(2)) / 3"),
    (float_problems, "method/votes", "y = x.astype(jnp.int32) // 2\nz = '1/2 floats'"),
    (float_problems, "files/checkpoint", "from pathlib import Path\nfile = folder / HOST_FILE"),
    (float_problems, "model/perturb", "import math\ny = round(math.log2(x_PN.shape[-1]) / 2)"),
    (float_problems, "runtime", "def integer_dot(x, w):\n    return x.astype(np.float64) @ w"),
    (length_problems, "method/votes", "x = 1\n" * LINES_AT_MOST),
    (length_problems, "runtime", "x = 1\n" * LINES_BY_EXCEPTION["runtime"]),
    (path_problems, "README", "see https://example.org" + "/home" + "/page, runs/a and /tmp/out"),
    (
        link_problems,
        "README.md",
        "# It's `a` [b](docs)!\n[up](#its-a-b) [out](https://example.org)",
    ),
    (
        link_problems,
        "README.md",
        "# A\n# A\n[second](#a-1) `[no](link)` [x](docs/log.md#log-index)",
    ),
    (link_problems, "docs/log/2026-11.md", "[table](../determinism.md#faults)"),
    (mention_problems, "sample", "# docs/determinism.md#faults, docs/data.md; docs/log/2026-11.md"),
]


@pytest.mark.parametrize(("rule", "module", "source"), BAD)
def test_rule_catches_a_breach(rule: Rule, module: str, source: str) -> None:
    """A source that breaks the rule is reported, with its line."""
    problems = rule(source, module)
    assert problems
    assert all(problem.startswith("line ") for problem in problems)


@pytest.mark.parametrize(("rule", "module", "source"), GOOD)
def test_rule_lets_good_code_pass(rule: Rule, module: str, source: str) -> None:
    """A source that keeps the rule is not reported."""
    assert rule(source, module) == []


def test_tests_run_under_strict_jax() -> None:
    """Mixing dtypes or ranks raises in every test, and there are eight devices to shard over."""
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(2, jnp.int8) + jnp.ones(2, jnp.int32)
    with pytest.raises(ValueError, match="rank"):
        jnp.ones((2, 2), jnp.int8) + jnp.ones(2, jnp.int8)
    assert len(jax.local_devices(backend="cpu")) == 8
