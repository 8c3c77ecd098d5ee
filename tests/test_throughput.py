"""The benchmarks: they run, and their rows carry what the design promises."""

import importlib
import json
import pkgutil

import pytest

from int_lm import method, model, native
from int_lm.native import dispatch

KEYS = {
    "width",
    "layers",
    "population",
    "inference_tokens_per_s",
    "perturbed_tokens_per_s",
    "perturbed_over_inference",
    "step_tokens_per_s",
    "int8_peak_gops",
}
TINY = ("--shape", "8,2,16,3", "--repeats", "1", "--json")


@pytest.mark.slow
def test_rows_and_breakdown(run_command) -> None:
    done = run_command("benchmarks/throughput.py", *TINY, "--recipe", "quickstart", "--profile")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (row,) = found["rows"]
    assert row.keys() >= KEYS
    assert (row["width"], row["layers"], row["population"]) == (8, 2, 16)
    assert row["weights"] == 256 * 8 * 2 + 2 * (24 * 16 + 16 * 8 + 8 * 16)
    ratio = row["perturbed_tokens_per_s"] / row["inference_tokens_per_s"]
    assert row["perturbed_over_inference"] == pytest.approx(ratio)
    (profile,) = found["profiles"]
    assert sum(profile["parts"].values()) == pytest.approx(1)
    # each is found in the call stacks of a compiled program: a jax that names them otherwise shows
    linears = {"linears"} if native.available() else {"base matmuls", "perturbation"}
    assert linears | {"norms", "likelihood", "state", "votes"} <= profile["parts"].keys()


@pytest.mark.slow
def test_every_recipe_at_a_rank_and_in_chunks(run_command) -> None:
    flags = *TINY, "--rank", "2", "--chunk", "8"
    done = run_command("benchmarks/throughput.py", *flags, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["recipe"] for row in rows] == ["egg", "rwkv", "quickstart"]
    assert {(row["rank"], row["chunk"]) for row in rows} == {(2, 8)}


@pytest.mark.slow
def test_every_kernel_beside_jax(run_command) -> None:
    flags = "--shape", "8,2,16,3", "--rank", "0", "2", "--repeats", "1", "--json"
    done = run_command("benchmarks/kernels.py", *flags, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = {row["part"]: row for row in json.loads(done.stdout)["rows"]}
    kinds = {part.split()[0].rstrip(",") for part in rows}
    for room in (method, model):
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            importlib.import_module(module.name)
    kernels = {function.kernels["cpu"] for function in dispatch.attached}
    assert kinds == {"dot", *kernels}
    assert rows["linear head 8 x 256, rank 2"]["kernel_gops"] > 0
    assert all(row["kernel_over_jax"] > 0 for row in rows.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("until", "at"), [(("--seconds", "1"), [1]), (("--steps", "7", "3"), [3, 7])]
)
def test_learning_curves_beside_the_entropies(until, at, run_command, tmp_path) -> None:
    text, rows = tmp_path / "text.txt", tmp_path / "rows.jsonl"
    text.write_text("to be or not to be, that is the question\n" * 500)
    flags = "--text", text, *until, "--recipe", "default", "--json", "--out", rows
    small = "--set", "model.direct_bits=8", "es.population=16", "model.width=8", "run.steps=100"
    done = run_command("benchmarks/learning.py", *map(str, flags), *small, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["heldout_bytes"] == 2050
    assert [row["at"] for row in found["rows"]] == at
    row = found["rows"][-1]
    assert (row["recipe"], row["seed"]) == ("default", 0)
    assert row["step"] == 7 if "--steps" in until else row["step"] > 1
    assert row["tokens"] == row["step"] * 16 * 16 and row["processor_seconds"] > 0
    assert row["bits_per_byte"] < (found["entropies"]["unigram"] if "--seconds" in until else 8)
    assert list(map(json.loads, rows.read_text().splitlines())) == found["rows"]


@pytest.mark.slow
def test_exact_votes_of_the_readout_are_the_gradient(run_command, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 500)
    flags = "--text", str(text), "--steps", "0", "--draws", "2", "--json", "--set"
    small = "model.width=16", "es.population=64", "es.segment_length=8"
    done = run_command("benchmarks/estimators.py", *flags, *small, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    nearness = {(row["estimator"], row["tensor"]): row["gradient"] for row in rows}
    exact = "trace", "unit", "local", "deep"
    assert {name for name, _ in nearness} == {"plain", *exact}
    # at the start the readout alone has a gradient
    assert min(nearness[name, "head"] for name in exact) > 0.9
    assert abs(nearness["plain", "head"]) < 0.5


@pytest.mark.slow
def test_collectives_of_two_devices_are_those_of_the_formula(run_command, tmp_path) -> None:
    small = tmp_path / "small.yaml"
    small.write_text(
        "model: {width: 8, direct: [1], direct_bits: 8}\nes: {population: 16, segment_length: 4}\n"
    )
    flags = "--config", str(small), "--repeats", "1", "--json"
    done = run_command("benchmarks/scaling.py", *flags, timeout=600)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    for way in ("replicated", "sharded"):
        assert row[f"bytes_{way}"] == row[f"formula_{way}"]
    assert row["two_devices_over_one"] > 0
