"""The Hugging Face hub: exports as model repositories, pushed and loaded, against a stand-in."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import stand_in_hub
from huggingface_hub import ModelCard, constants
from stand_in_hub import OWNER, TOKEN, Hub, Repository
from test_export import contents, evaluation_of
from tiny_run import export_tiny_run, tiny_run

import int_lm
from int_lm import export, hub, runtime
from int_lm.compress.__main__ import codec_of
from int_lm.errors import UserError
from int_lm.export import __main__ as command, metadata
from int_lm.export.push import push
from int_lm.sample import __main__ as sample_command
from tokenization import ByteTokenizer

NAME = f"{OWNER}/tiny-model"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the library


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with stand_in_hub.serving() as server:
        yield server


@pytest.fixture(autouse=True)
def at_home(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`huggingface_hub` speaks to the stand-in, and keeps what it keeps in `tmp_path`."""
    server.repositories.clear()
    server.requests.clear()
    server.failing = ("", 0)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_DISABLE_XET": True,  # another protocol than HTTP
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny_run(tiny_run(), tmp_path_factory.mktemp("pushed"))


# Cards


def test_the_card_is_read_by_the_hubs_own_library(tmp_path: Path) -> None:
    """Library, task, licence, languages, and the figures if they belong to the weights."""
    run = tiny_run()
    ByteTokenizer().save(tmp_path / "tokenizer")
    found = {}
    for name, evaluation in (("with", evaluation_of(run)), ("without", None)):
        found[name] = ModelCard.load(
            export.export_model(
                run,
                tmp_path / name,
                tokenizer_directory=tmp_path / "tokenizer",
                evaluation=evaluation,
                license="apache-2.0",
                languages=["en", "code"],
            )
            / "README.md"
        )
    data = found["with"].data
    assert (data.library_name, data.pipeline_tag) == ("int_lm", "text-generation")
    assert (data.license, data.language) == ("apache-2.0", ["en", "code"])
    assert {"int8", "egg"} <= set(data.tags)
    bits, perplexity = data.eval_results
    assert (bits.metric_type, bits.metric_value) == ("bits_per_byte", 2.7183)
    assert (perplexity.metric_type, perplexity.metric_value) == ("byte_perplexity", 6.6)
    assert bits.task_type == "text-generation" and bits.dataset_args == {"sha256": "7" * 64}
    assert "held out of" in bits.dataset_name
    assert found["without"].data.eval_results is None
    assert "trust_remote_code" not in found["with"].text


def test_a_card_says_no_licence_that_nobody_gave(directory: Path) -> None:
    data = ModelCard.load(directory / "README.md").data
    assert data.license is None and data.language is None
    config = json.loads((directory / "config.json").read_text())
    assert config["quantization"]["weights"] == "int8" and config["library_name"] == "int_lm"
    assert config["format_version"] == runtime.FORMAT_VERSION
    for given, message in ((("a b", "en"), "--license is 'a b'"), (("mit", "Deutsch"), "language")):
        with pytest.raises(UserError, match=message):
            metadata.checked_license(given[0])
            metadata.checked_language(given[1])
    assert metadata.checked_license("Apache-2.0") == "apache-2.0"


# Push and load


def test_a_pushed_export_comes_back(directory: Path, server: Hub, capsys) -> None:
    """All its files, in one commit; loaded by name, it writes the same text."""
    before = contents(directory)
    pushed = push(directory, NAME)
    repository = server.repositories[NAME]
    sha = repository.branches["main"]
    assert pushed == f"hf://{NAME}@{sha}" and not repository.private
    files = dict(repository.commits[sha])
    assert files.pop(".gitattributes") and files == before == contents(directory)
    config = json.loads(before["config.json"])
    assert repository.messages == [f"Step 7, weights {config['weights_hash']}"]

    model = int_lm.load(pushed)
    assert model.sample("ab", tokens=9, seed=2) == int_lm.load(directory).sample(
        "ab", tokens=9, seed=2
    )
    assert model.path.name == sha
    read = {path.relative_to(model.path).as_posix() for path in model.path.rglob("*")}
    assert read == {"config.json", "model.safetensors", "tokenizer", "tokenizer/identity.json"}
    assert codec_of(pushed).model.config == config
    capsys.readouterr()
    sample_command.main(["--export", f"hf://{NAME}", "--prompt", "ab", "--tokens", "3"])
    said = capsys.readouterr()
    assert f"hf://{NAME}@{sha} is always this one" in said.err and said.out.startswith("ab")


def test_a_loaded_export_needs_no_network_again(directory: Path, server: Hub, monkeypatch) -> None:
    """A commit that is in the cache is read from there."""
    pushed = push(directory, NAME)
    first = hub.local(pushed)
    server.failing = ("/", 503)
    asked = len(server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.local(pushed) == first
    assert len(server.requests) == asked
    assert hub.local(first) == first and hub.local("a/b") == Path("a/b")


def test_another_export_takes_the_place_of_the_first(
    directory: Path, server: Hub, tmp_path
) -> None:
    """In one commit, on a branch that is made, without files that are not its own any more."""
    first = push(directory, NAME, private=True)
    repository = server.repositories[NAME]
    assert repository.private
    old = repository.commits[repository.branches["main"]]
    repository.branches["main"] = repository.commit({**old, "architecture.py": b"# of a plug-in\n"})
    run = tiny_run(extreme=True)
    second = push(export_tiny_run(run, tmp_path), NAME, revision="extreme")
    assert repository.branches.keys() == {"main", "extreme"}
    files = repository.commits[repository.branches["extreme"]]
    assert "architecture.py" not in files and files["model.safetensors"] != old["model.safetensors"]
    assert len(repository.messages) == 2 and first != second
    assert hub.local(f"hf://{NAME}@extreme") == hub.local(second)
    count = len(repository.commits)
    with pytest.raises(UserError, match="no such revision"):
        hub.local(f"hf://{NAME}@nowhere")
    assert len(repository.commits) == count


# Mistakes


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"pytorch_model.bin": b"x"}, "pytorch_model.bin"),
        ({"README.md": b"# other\n"}, "README.md"),
        ({"config.json": b"{}", "model.safetensors": b"x"}, "config.json, model.safetensors"),
    ],
)
def test_other_content_is_not_replaced(files, named, directory: Path, server: Hub) -> None:
    """A repository that holds anything but an export of int_lm stays as it is."""
    repository = server.repositories[NAME] = Repository(False, files)
    before = dict(repository.branches)
    for revision in (None, "new"):
        with pytest.raises(UserError, match=f"holds {named}, which is no export of int_lm"):
            push(directory, NAME, revision=revision)
    assert repository.branches == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny-model", "does not say whose"),
        ("a/b/c", "is no name of a repository"),
        ("someone/..", "is no name of a repository"),
        ("some one/x", "is no name of a repository"),
        ("someone/x.git", "is no name of a repository"),
    ],
)
def test_malformed_names_are_refused(name: str, message: str, directory: Path, server: Hub) -> None:
    with pytest.raises(UserError, match=message):
        push(directory, name)
    with pytest.raises(UserError, match=message):
        hub.local(f"hf://{name}@main")
    for revision in ("", "../x", "a b"):
        with pytest.raises(UserError, match="is no revision"):
            hub.local(f"hf://{NAME}@{revision}")
    assert not server.requests


def test_what_the_hub_refuses_is_one_sentence(directory: Path, server: Hub, monkeypatch) -> None:
    """No right, no such repository, a wrong token, trouble, another commit meanwhile."""
    with pytest.raises(UserError, match="does not let your token write to others/x"):
        push(directory, "others/x")
    with pytest.raises(UserError, match=r"no repository someone/nothing that you may read"):
        hub.local("hf://someone/nothing")
    for part, status, message in (
        ("/commit/", 412, "changed meanwhile"),
        ("/commit/", 403, "does not let your token"),
        ("/repos/create", 400, "answered 400"),
        ("/lfs/", 403, "does not let your token"),
    ):
        server.failing = (part, status)
        with pytest.raises(UserError, match=message):
            push(directory, NAME)
    server.failing = ("", 0)
    assert server.repositories[NAME].messages == []
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="does not accept your token"):
        push(directory, NAME)


def test_without_a_network_there_is_one_sentence(directory: Path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for action in (lambda: push(directory, NAME), lambda: hub.local(f"hf://{NAME}")):
        with pytest.raises(UserError, match=r"\(http://127.0.0.1:9\) does not answer about"):
            action()


def test_a_failure_of_the_other_way_to_upload_is_said(directory, server, monkeypatch) -> None:
    """Xet, a protocol of its own in native code, which the stand-in does not speak."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(UserError, match="does not answer about someone/tiny-model .*; check the"):
        push(directory, NAME)
    assert any("/xet-write-token/" in request for request in server.requests)
    assert server.repositories[NAME].messages == []


def test_no_damaged_export_is_pushed(directory: Path, tmp_path: Path, server: Hub) -> None:
    """A file that changed, a file that is not the export's, a directory that is none."""
    for name, spoil, message in (
        ("changed", lambda copy: (copy / "README.md").write_text("x"), "README.md"),
        ("more", lambda copy: (copy / "notes.txt").write_text("x"), "also holds notes.txt"),
        ("none", lambda copy: (copy / "config.json").unlink(), "is no export"),
        ("unsealed", lambda copy: (copy / "files.sha256").unlink(), "has no files.sha256"),
    ):
        for path, data in contents(directory).items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(data)
        spoil(tmp_path / name)
        with pytest.raises(UserError, match=re.escape(message)):
            push(tmp_path / name, NAME)
    assert not server.requests


def test_a_public_repository_is_not_taken_for_a_private_one(directory: Path, server: Hub) -> None:
    push(directory, NAME)
    count = len(server.repositories[NAME].commits)
    with pytest.raises(UserError, match="exists and is public"):
        push(directory, NAME, revision="b", private=True)
    assert len(server.repositories[NAME].commits) == count
    assert server.repositories[NAME].branches.keys() == {"main"}


# The command


def test_the_command_exports_and_pushes(whole, server: Hub, tmp_path: Path, capsys) -> None:
    """A push that fails leaves the export, which the command then pushes without the run."""
    out = tmp_path / "export"
    server.failing = ("/commit/", 403)
    flags = ["--out", str(out), "--push", NAME, "--private"]
    with pytest.raises(UserError, match="the export is kept; .* --push OWNER/NAME pushes it"):
        command.main(["--run", str(whole[0]), "--license", "MIT", "--language", "en", *flags])
    before = contents(out)
    assert runtime.load(out).config["step"] == 60
    server.failing = ("", 0)
    command.main(flags)
    assert contents(out) == before
    repository = server.repositories[NAME]
    sha = repository.branches["main"]
    assert f"pushed to hf://{NAME}@{sha}" in capsys.readouterr().out
    assert repository.private
    data = ModelCard(repository.commits[sha]["README.md"].decode()).data
    assert data.license == "mit" and data.language == ["en"]
    [result, _] = data.eval_results
    figures = json.loads((whole[0] / "evaluation.json").read_text())
    assert result.metric_value == round(figures["bits_per_byte"], 4)


@pytest.mark.slow
def test_every_command_reads_an_export_of_the_hub(
    whole, server: Hub, tmp_path: Path, run_command
) -> None:
    """As a user starts them: what they say of the directory and of its repository is the same."""
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    env["HF_HUB_DISABLE_XET"] = "1"
    flags = ["--run", whole[0], "--out", "export", "--push", NAME, "--revision", "a"]
    done = run_command("-m", "int_lm.export", *flags, env=env)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    name = f"hf://{NAME}@{server.repositories[NAME].branches['a']}"
    assert f"pushed to {name}" in done.stdout
    (tmp_path / "text.txt").write_text("etaoin shrdlu\n" * 20)
    said = []
    for place in ("export", name):
        evaluated = run_command(
            "eval.py", "--export", place, "--text", "text.txt", "--json", env=env
        )
        sampled = run_command("-m", "int_lm.sample", "--export", place, "--tokens", "9", env=env)
        packed = run_command(
            *("-m", "int_lm.compress", "text.txt", "-o", "packed", "--overwrite"),
            *("--export", place),
            env=env,
        )
        assert [done.returncode for done in (evaluated, sampled, packed)] == [0, 0, 0]
        figures = {**json.loads(evaluated.stdout), "model": ""}
        said.append((figures, sampled.stdout, (tmp_path / "packed").read_bytes()))
    assert said[0] == said[1]
    done = run_command("eval.py", "--export", f"hf://{OWNER}/none", "--text", "text.txt", env=env)
    assert done.returncode == 2 and "no repository someone/none" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "x"], "name the run to export"),
        (["--out", "x", "--run", "r", "--revision", "b"], "--revision is for --push"),
        (["--out", "x", "--run", "r", "--private"], "--private is for --push"),
        (["--out", "x", "--push", NAME, "--prune", "3"], "--prune is for an export of --run"),
        (["--out", "x", "--push", NAME], "x is no export"),
        (["--out", "x", "--run", "r", "--push", "name"], "does not say whose"),
        (["--out", "x", "--run", "r", "--push", NAME, "--revision", "a b"], "is no revision"),
        (["--out", "x", "--run", "r", "--license", "a b"], "--license is"),
        (["--out", "x", "--run", "r", "--language", "English"], "--language is"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_done(flags, message, server: Hub) -> None:
    with pytest.raises(UserError, match=message):
        command.main(flags)
    assert not server.requests


def test_a_missing_token_is_said_first(tmp_path: Path, monkeypatch, server: Hub) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert huggingface_hub.get_token() is None
    with pytest.raises(UserError, match="needs a token"):
        command.main(["--run", "r", "--out", str(tmp_path / "x"), "--push", NAME])
    assert not server.requests and not (tmp_path / "x").exists()
