"""The benchmarks of speed: they run, and their rows carry what the design promises."""

import importlib
import json

import pytest

from int_lm import native
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
    importlib.import_module("int_lm.method.evolve")  # and with it all that have kernels
    kernels = {function.kernels["cpu"] for function in dispatch.attached}
    assert kinds == {"dot", *kernels}
    assert rows["linear head 8 x 256, rank 2"]["kernel_gops"] > 0
    assert all(row["kernel_over_jax"] > 0 for row in rows.values())
