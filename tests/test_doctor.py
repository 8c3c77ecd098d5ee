"""`int_lm.doctor`: what it finds on this machine, and what it says of other machines."""

import http.server
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from int_lm import doctor
from int_lm.doctor import machine
from int_lm.measure import rate
from int_lm.native import build, dispatch

ROOT = Path(__file__).resolve().parent.parent
SOUND: dict[str, Any] = {
    "versions": {"int-lm": "0.1.0", "jax": "0.10.2"},
    "python": {"version": "3.11.7", "path": "python"},
    "processors": {
        **{"machine": "x86_64", "name": "a processor", "cores": 2, "quota": 1.5},
        "instructions": ["avx2"],
    },
    "memory": {"total": 8 << 30, "available": 4 << 30, "limit": None},
    "disk": {
        "path": "runs",
        "missing": None,
        "free": 10**12,
        "written_per_second": 1e8,
        "error": None,
    },
    "caches": {
        **{"compilation": {"path": "cache", "bytes": 1500, "complete": True}},
        **{name: {"path": name, "bytes": None, "complete": True} for name in ("hub", "datasets")},
    },
    "hub": {"endpoint": "https://hub", "offline": None, "answers": True, "error": None},
    "jax": {
        **{"platform": "cpu", "devices": ["cpu"], "int8_gops": 123.4},
        "kernels": {"possible": True, "file": "k.so", "level": "vnni", "used": ["norm"]},
        "compilers": {"g++": "g++ 12"},
    },
    "jax_error": None,
    "gpu": False,
    "build": "make the kernels",
}


def changed(**changes: Any) -> dict[str, Any]:
    """Answers of a sound machine with others below some keys, named topic__key__key."""
    answers = json.loads(json.dumps(SOUND))
    for name, value in changes.items():
        *path, last = name.split("__")
        place = answers
        for key in path:
            place = place[key]
        place[last] = value
    return answers


def test_a_sound_machine_needs_nothing() -> None:
    """And every topic has a line."""
    assert doctor.findings(SOUND) == []
    lines = doctor.lines(SOUND)
    assert "cores              2, 1.5 of them by its control group" in lines
    assert "int8               123 x 10^9 operations/s (XLA's best dot)" in lines
    assert "kernels            k.so, vnni; used for: norm" in lines
    assert "compilation cache  cache: 1.5 kB" in lines
    assert "hub cache          hub: none" in lines


def test_a_directory_that_is_not_there_is_said() -> None:
    """Otherwise the disk of the one above it looks like its own."""
    (line,) = (x for x in doctor.lines(changed(disk__missing="nope/a")) if x.startswith("disk "))
    assert "runs (nope/a is not there yet): 1000.0 GB free" in line


NOT_BUILT = {"jax__kernels__level": "not built", "jax__kernels__file": None}


@pytest.mark.parametrize(
    ("changes", "sentence", "needs_you"),
    [
        ({"versions__jax": None}, "not installed: jax; run: ", True),
        ({"jax": None, "jax_error": "no libtpu"}, "JAX does not start: no libtpu", True),
        ({"gpu": True}, "there is an NVIDIA GPU, but JAX computes on the processor; run", True),
        (NOT_BUILT, "kernels are not built; run: make the kernels; until", True),
        (NOT_BUILT | {"jax__compilers": {}}, "kernels are not built, and there is no C++", True),
        ({"jax__kernels__level": "unsupported"}, "this processor lacks AVX2", False),
        ({"jax__kernels__level": "switched off"}, "INT_LM_NATIVE=0 switches the kernels", False),
        ({"jax__kernels__possible": False}, "there are no kernels for x86_64 processors", False),
        ({"disk__error": "Read-only"}, "runs cannot be written to (Read-only); choose", True),
        ({"disk__free": 10**8}, "runs has 100.0 MB left; free some space", True),
        ({"memory__limit": 5 * 10**8}, "500.0 MB of memory are left", True),
        (
            {"caches__compilation": None},
            "JAX_ENABLE_COMPILATION_CACHE switches JAX's cache off",
            False,
        ),
        ({"hub__offline": "HF_HUB_OFFLINE"}, "HF_HUB_OFFLINE forbids the network", False),
        ({"hub__answers": False, "hub__error": "no route"}, "https://hub does not answer", False),
    ],
)
def test_findings(changes: dict[str, Any], sentence: str, needs_you: bool) -> None:
    """One sentence, and whether the user should do something."""
    answers = changed(**changes)
    [finding] = doctor.findings(answers)
    assert finding.sentence.startswith(sentence)
    assert finding.needs_you == needs_you
    assert doctor.lines(answers)


def test_what_needs_the_user_comes_first() -> None:
    """Also if it was found later."""
    found = doctor.findings(changed(jax__kernels__level="switched off", disk__error="full"))
    assert [finding.needs_you for finding in found] == [True, False]


def test_this_machine(run_command, tmp_path: Path) -> None:
    """One JSON object about what is there; the exit code says whether something needs the user."""
    variables = {"HF_HUB_OFFLINE": "1", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    done = run_command("-m", "int_lm.doctor", "--json", env=variables)
    found = json.loads(done.stdout)
    assert done.stderr == "" and done.returncode == any(x["needs_you"] for x in found["findings"])
    assert found["versions"]["jax"] and None not in found["versions"].values()
    assert found["jax"]["platform"] and found["jax"]["devices"] and found["jax"]["int8_gops"] > 0
    kernels = found["jax"]["kernels"]
    assert (kernels["level"], kernels["possible"]) == (dispatch.level(), build.possible())
    instructions = set(found["processors"]["instructions"])
    if kernels["level"] in ("vnni", "avx_vnni", "avx2", "unsupported"):
        assert (kernels["level"] != "unsupported") == ("avx2" in instructions)
        assert (kernels["level"] == "vnni") == ("avx512_vnni" in instructions)
    if kernels["level"] in ("dotprod", "neon"):
        assert (kernels["level"] == "dotprod") == ("asimddp" in instructions)
    assert (kernels["file"] is not None) == build.library().exists()
    if dispatch.available():
        assert {"norm", "outer", "log2_likelihood", "of_rows"} < set(kernels["used"])
    else:
        assert kernels["used"] == []
    assert found["disk"]["path"] == str(tmp_path) and found["disk"]["written_per_second"] > 0
    assert found["hub"] == {
        **{"endpoint": "https://huggingface.co", "offline": "HF_HUB_OFFLINE"},
        **{"answers": None, "error": None},
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"]


def test_jax_that_does_not_start(run_command, tmp_path: Path) -> None:
    """Everything else is said, and the exit code is 1; NumPy is not needed either."""
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    names = "('jax', 'jaxlib', 'numpy')"
    (hiding / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({names}))\n"
    )
    path = {"PYTHONPATH": f"{hiding}{os.pathsep}{ROOT}", "HF_DATASETS_OFFLINE": "1"}
    done = run_command("-m", "int_lm", "doctor", env=path)
    assert done.returncode == 1 and done.stderr == ""
    assert "\nto do: JAX does not start: ModuleNotFoundError: import of jax halted" in done.stdout
    assert "\nmemory " in done.stdout and "\npackages " in done.stdout
    assert "\nhub                https://huggingface.co: not asked (HF_DATASETS_OFFLINE)" in (
        done.stdout
    )


def test_disk_that_cannot_be_written_to(tmp_path: Path) -> None:
    """Its error is told; a directory that is yet to be made is looked for further up."""
    assert machine.disk(Path("/proc/self/nothing"))["error"]
    found = machine.disk(tmp_path / "a" / "b")
    assert found["path"] == str(tmp_path) and found["error"] is None and found["free"] > 0
    assert list(tmp_path.iterdir()) == []


def test_sizes_of_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of all files below, wherever the variables of the libraries say."""
    (tmp_path / "home" / "hub" / "deep").mkdir(parents=True)
    (tmp_path / "home" / "hub" / "deep" / "a").write_bytes(b"x" * 1000)
    (tmp_path / "home" / "hub" / "b").write_bytes(b"x" * 24)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    found = machine.caches()
    assert found["hub"] == {
        **{"path": str(tmp_path / "home" / "hub"), "bytes": 1024, "complete": True}
    }
    assert found["datasets"] is not None and found["datasets"]["bytes"] is None
    assert found["compilation"] == machine.size(tmp_path / "int_lm")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "0")
    assert machine.caches()["compilation"] is None
    monkeypatch.setattr(machine, "COUNTING_SECONDS", -1)
    assert machine.size(tmp_path / "home" / "hub")["complete"] is False


def test_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any answer counts, also that a page is not there; no answer is told with its reason."""

    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:  # noqa: N802
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), NotFound) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert machine.hub()["answers"] is True
        thread.join()
    found = machine.hub()
    assert found["answers"] is False and "refused" in found["error"]


def test_the_best_dot_is_the_fastest_one() -> None:
    """Operations are two for each product, and the shape with the most in a second counts."""
    times = iter([1.0, 0.5, 2.0, 4.0])
    operations = [2 * rows * inputs * outputs for rows, inputs, outputs in rate.SHAPES]
    best = rate.best_dot(lambda dot: next(times))
    assert best == max(o / t for o, t in zip(operations, [1, 0.5, 2, 4], strict=True)) / 1e9
    assert rate.best_dot_in(0.0) > 0
