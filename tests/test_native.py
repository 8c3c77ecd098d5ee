"""The kernels in C++ give the bits of the JAX code they stand in for, at every shape and extreme.

They are built by `python -m int_lm.native` (`make` does); without a compiler these tests are
skipped, and the program runs without them.
"""

import functools
import importlib
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import emulated_arm
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from int_lm import native, switches
from int_lm.config.command_line import OneLineParser
from int_lm.errors import UserError
from int_lm.method.estimator import outer
from int_lm.model import layers
from int_lm.model.layers import shift_for
from int_lm.model.perturb import Weight
from int_lm.native import __main__ as native_command, build, cpu, dispatch
from int_lm.training import session

built = pytest.mark.skipif(not native.available(), reason="the kernels are not built")


# the path that is taken on this processor, and slowly all others that it has
SETS = native.supported() if native.available() else ()
PATHS = ["widest", *(pytest.param(name, marks=pytest.mark.slow) for name in SETS[1:])]
LOW = 7


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kernels take one path or another."""
    with native.instructions(request.param):
        yield


@pytest.fixture(params=["widest", "narrowest"])
def either_path(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same, among the fast tests."""
    with native.instructions(request.param):
        yield


def random_int8(random: np.random.Generator, *shape: int, extreme: bool = False) -> np.ndarray:
    """int8 in [-127, 127]; the two ends only, if `extreme`."""
    if extreme:
        return random.choice(np.array([-127, 127], np.int8), shape)
    return random.integers(-127, 128, shape, dtype=np.int8)


# rows, inputs, outputs: one of everything, tiles and groups with and without remainders, and few
# rows, whose weights are not packed
SHAPES = [(2, 1, 1), (12, 7, 65), (98, 66, 130), (60, 128, 64), (2, 149, 70)]


@built
@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (SHAPES[1], jnp.int8),
        (SHAPES[4], jnp.int8),
        *(pytest.param(shape, jnp.int8, marks=pytest.mark.slow) for shape in SHAPES[::2]),
        pytest.param(SHAPES[3], jnp.int8, marks=pytest.mark.slow),
        pytest.param(SHAPES[1], jnp.int16, marks=pytest.mark.slow),
    ],
)
def test_linear(shape: tuple[int, int, int], dtype: type) -> None:
    rows, inputs, outputs = shape
    for rank in (0, 1, 2, 3, 4):
        for extreme in (False, True):
            draw = functools.partial(random_int8, np.random.default_rng(rank), extreme=extreme)
            x_PN, weight_MN = draw(rows, inputs), draw(outputs, inputs)
            left, right = (draw(rows // 2, size, rank) // 2 for size in (outputs, inputs))
            noises = (jnp.asarray(left), jnp.asarray(right)) if rank else (None, None)
            weight = Weight(jnp.asarray(weight_MN), *noises, shift=LOW)
            operands = weight, jnp.asarray(x_PN), shift_for(inputs), dtype
            got = np.asarray(cpu.linear(*operands))
            assert np.array_equal(got, layers.narrowed.by_jax(*operands))
            if rank == 1 and dtype == jnp.int8:  # and those of NumPy, member by member
                for member, x_N in enumerate(x_PN):
                    sign = 1 - 2 * (member % 2)
                    pair = sign * left[member // 2].astype(np.int64), right[member // 2]
                    assert np.array_equal(got[member], one_member(weight_MN, x_N, *pair))


@built
@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("inputs", [15, 16, 520, 521])
def test_scores_of_rank_4_as_large_as_they_get(inputs: int) -> None:
    """x B of 127 and -127 only; 521 such products are more than 2^23."""
    x_PN = np.full((4, inputs), 127, np.int8)
    x_PN[2:] = random_int8(np.random.default_rng(0), 2, inputs, extreme=True)
    weight_MN = random_int8(np.random.default_rng(1), 65, inputs)
    right_INR = np.full((2, inputs, 4), 127, np.int8)
    right_INR[0, :, 1::2] = -127
    left_IMR = random_int8(np.random.default_rng(2), 2, 65, 4) // 3  # their sum stays in int32
    arrays = map(jnp.asarray, (weight_MN, left_IMR, right_INR))
    got = np.asarray(cpu.linear(Weight(*arrays, shift=14), jnp.asarray(x_PN), 10, jnp.int8))
    scores_PR = x_PN.astype(np.int64)[:, None] @ right_INR.repeat(2, axis=0).astype(np.int64)
    signs_P1 = np.array([1, -1, 1, -1])[:, None]
    delta_PM = (left_IMR.repeat(2, axis=0) @ (signs_P1 * scores_PR[:, 0])[..., None])[..., 0]
    assert np.abs(delta_PM).max() < 2**31
    sums_PM = x_PN.astype(np.int64) @ weight_MN.T.astype(np.int64) + (delta_PM >> 14)
    np.testing.assert_array_equal(got, np.clip(sums_PM >> 10, -127, 127))


def one_member(weight_MN, x_N, left_MR, right_NR) -> np.ndarray:
    """One member, in NumPy's int64."""
    x = x_N.astype(np.int64)
    delta = (left_MR @ (x @ right_NR.astype(np.int64))) >> LOW
    return np.clip((weight_MN.astype(np.int64) @ x + delta) >> shift_for(len(x)), -127, 127)


@built
@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int16])
@pytest.mark.parametrize("outputs", [31, 32, 63, 96])
def test_narrowing_of_the_largest_sums(outputs: int, dtype: type) -> None:
    """Outputs are narrowed 32 at a time: whole and broken ones, clipped on both sides."""
    x_PN = np.full((6, 40), 127, np.int8)
    x_PN[1::2] = -127
    weight_MN = np.full((outputs, 40), 127, np.int8)
    weight_MN[1::3], weight_MN[2::3] = -127, 0
    draw = functools.partial(random_int8, np.random.default_rng(outputs), extreme=True)
    for rank in (1, 2, 4):
        noises = (jnp.asarray(draw(3, size, rank)) for size in (outputs, 40))
        left, right = noises
        operands = Weight(jnp.asarray(weight_MN), left, right, shift=3), jnp.asarray(x_PN), 7
        got = cpu.linear(*operands, dtype)
        shifted = np.asarray(layers.narrowed.by_jax(*operands, jnp.int32))
        most = 127 if dtype == jnp.int8 else 32767
        assert shifted.max() > 127 and shifted.min() < -127
        np.testing.assert_array_equal(np.asarray(got), np.clip(shifted, -most, most))


@built
@pytest.mark.parametrize("layer", [-1, 2])
def test_a_layer_that_is_not_there(layer: int) -> None:
    x_PN, weight_LMN = np.zeros((4, 8), np.int8), np.zeros((2, 8, 8), np.int8)
    with pytest.raises(jax.errors.JaxRuntimeError, match="there is no such layer"):
        weight = Weight(jnp.asarray(weight_LMN), layer=jnp.int32(layer))
        jax.block_until_ready(cpu.linear(weight, jnp.asarray(x_PN), 6, jnp.int8))


@built
@pytest.mark.parametrize("rows", [1, 7])
def test_an_odd_number_of_rows_without_a_perturbation(rows: int) -> None:
    random = np.random.default_rng(0)
    x_PN, weight_MN = random_int8(random, rows, 20), random_int8(random, 9, 20)
    operands = Weight(jnp.asarray(weight_MN)), jnp.asarray(x_PN), shift_for(20), jnp.int8
    assert np.array_equal(cpu.linear(*operands), layers.narrowed.by_jax(*operands))


@built
@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("width", [1, 5, 64, 250])
def test_norm(width: int) -> None:
    random = np.random.default_rng(width)
    # rows of every mean magnitude, from all zeros up
    x_PD = np.concatenate(
        [random.integers(-k, k + 1, (2, width), dtype=np.int8) for k in range(128)]
    )
    gain_PD = random_int8(random, *x_PD.shape)
    got = np.asarray(cpu.norm(jnp.asarray(gain_PD), jnp.asarray(x_PD)))
    rows = zip(gain_PD.tolist(), x_PD.tolist(), strict=True)
    want = [oracle.norm(gain, x) for gain, x in rows]
    assert np.array_equal(got, np.stack(want))


# terms, rows, columns: one of everything, remainders of every block, and several pieces of work
OUTER_SHAPES = [(1, 1, 1), (6, 5, 17), (259, 193, 257), (2051, 130, 66), (4100, 7, 300)]


@built
@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("shape", OUTER_SHAPES)
@pytest.mark.parametrize("extreme", [False, True])
def test_outer(shape: tuple[int, int, int], extreme: bool) -> None:
    terms, rows, columns = shape
    draw = functools.partial(random_int8, np.random.default_rng(terms), extreme=extreme)
    left_JM, right_JN = draw(terms, rows), draw(terms, columns)
    operands = jnp.asarray(left_JM)[:, None], jnp.asarray(right_JN)[:, None]
    got = np.asarray(cpu.outer(*operands))
    assert np.array_equal(got, left_JM.T.astype(np.int64) @ right_JN.astype(np.int64))
    assert np.array_equal(got, outer.outer.by_jax(*operands))


@built
@pytest.mark.usefixtures("path")
def test_outer_is_exact_up_to_the_bound_of_int32() -> None:
    """The longest sum of equal signs that `recipe.of` allows, and no wrap."""
    terms = (2**31 - 1) // 127**2
    ones = np.full((terms, 1), 127, np.int8)
    both = np.concatenate([ones, -ones], axis=1)
    got = np.asarray(cpu.outer(jnp.asarray(both), jnp.asarray(both)))
    assert np.array_equal(got, terms * 127**2 * np.array([[1, -1], [-1, 1]]))


@built
def test_outer_in_a_loop_over_layers() -> None:
    random = np.random.default_rng(0)
    left_LJM, right_LJN = random_int8(random, 3, 40, 5), random_int8(random, 3, 40, 9)
    program = jax.jit(lambda *both: jax.lax.map(lambda layer: cpu.outer(*layer), both))
    got = program(left_LJM, right_LJN)
    assert np.array_equal(got, np.einsum("ljm,ljn->lmn", left_LJM, right_LJN, dtype=np.int64))


@built
def test_the_program_calls_them_on_cpus() -> None:
    weight = Weight(jnp.ones((8, 8), jnp.int8))
    program = jax.jit(layers.linear).lower(weight, jnp.ones((2, 8), jnp.int8)).as_text()
    assert "int_lm_linear8" in program


def emulated(plugin: str, *files: str, chosen: tuple[str, str], **variables: str) -> None:
    """Tests of kernels whose instructions a plugin emulates."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", plugin, *chosen]
    paths = os.pathsep.join(map(str, [here, here.parent]))
    done = subprocess.run(
        [*command, *(here / file for file in files)],
        env={**os.environ, "PYTHONPATH": paths, **variables},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@built
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")
@pytest.mark.parametrize("name", ["vnni", "avx_vnni"])
def test_paths_that_an_x86_processor_lacks(name: str) -> None:
    """Every fast test of kernels, with the instructions of that path emulated."""
    if name in SETS or "avx2" not in SETS:
        pytest.skip(f"this processor has {name}, or lacks AVX2")
    chosen = ("-m", "not slow") if name == "vnni" else ("-k", name)
    emulated("emulated_avx512", "test_native.py", "test_native_votes.py", chosen=chosen)


@built
@pytest.mark.slow
@pytest.mark.skipif(not emulated_arm.possible(), reason="there is no compiler or emulator of ARM")
@pytest.mark.parametrize("processor", ["max", "cortex-a53"])
def test_paths_of_arm(processor: str) -> None:
    """Every fast test of kernels and of segments, with dot products (`max`) and without."""
    files = "test_native.py", "test_native_votes.py", "test_segments.py"
    emulated("emulated_arm", *files, chosen=("-m", "not slow"), EMULATED_ARM=processor)


@built
def test_instructions_that_a_processor_lacks_are_refused() -> None:
    refused = pytest.raises(ValueError, match="no instructions 'abacus' here")
    with refused, native.instructions("abacus"):
        pass


def test_the_switch_and_a_missing_library_leave_jax(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(switches.NATIVE, "0")
    assert not native.available.__wrapped__()
    monkeypatch.setenv(switches.NATIVE, "off")
    with pytest.raises(UserError, match="INT_LM_NATIVE is 'off' in the environment, must be 0 or"):
        native.available.__wrapped__()
    monkeypatch.setenv(switches.NATIVE, "")
    monkeypatch.setenv(switches.GPU_SEGMENTS, "2")  # of every command, on every machine
    with pytest.raises(UserError, match="INT_LM_GPU_SEGMENTS is '2' in the environment, must be"):
        OneLineParser().parse_strict([])
    monkeypatch.delenv(switches.GPU_SEGMENTS)
    for name in build.SOURCES:
        shutil.copy(build.HERE / name, tmp_path)
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert not native.available.__wrapped__()


def test_building_without_a_compiler_says_so(monkeypatch, tmp_path) -> None:
    for name in build.SOURCES:
        shutil.copy(build.HERE / name, tmp_path)
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    assert "JAX computes everything" in build.build()
    assert not list(tmp_path.glob("kernels-*"))
    if build.possible():
        with pytest.raises(UserError, match="no C\\+\\+ compiler could .*; install one"):
            native_command.main()
        monkeypatch.delenv(switches.NATIVE, raising=False)
        assert session.without_kernels() == (jax.default_backend() == "cpu")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")
def test_building_replaces_older_kernels(monkeypatch, tmp_path) -> None:
    if sys.platform != "linux" or not build.possible():
        pytest.skip("there are no kernels for this machine, or no `nm -D`")
    for name in build.SOURCES:
        shutil.copy(build.HERE / name, tmp_path)
    monkeypatch.setattr(build, "HERE", tmp_path)
    (tmp_path / "kernels-0.so").touch()
    assert build.build().startswith("kernels built")
    assert [path.name for path in tmp_path.glob("kernels-*")] == [build.library().name]
    assert build.build().startswith("kernels are built")
    symbols = subprocess.run(["nm", "-D", build.library()], capture_output=True, text=True).stdout
    listed = dispatch.shared_library().int_lm_kernels().decode().split()
    assert "int_lm_linear8" in listed
    assert all(f" T {name}\n" in symbols for name in listed)


@pytest.mark.parametrize("module", ["cpu", "gpu"])
def test_every_attached_kernel_is_there_with_the_same_arguments(module: str) -> None:
    """Of the functions that take kernels; what a kernel adds for tests comes last."""
    importlib.import_module("int_lm.method.evolve")  # and with it all that have kernels
    found = [function for function in dispatch.attached if module in function.kernels]
    assert found
    for function in found:
        kernel = dispatch.kernel(module, function.kernels[module])
        names = list(inspect.signature(function.by_jax).parameters)
        assert list(inspect.signature(kernel).parameters)[: len(names)] == names


def test_a_kernel_that_does_not_take_its_operands_leaves_them_to_jax(monkeypatch) -> None:
    """`accelerated` calls a kernel where it takes the operands, and JAX elsewhere."""

    def halves(x: jax.Array) -> jax.Array:
        return x + 1 if x.shape[0] % 2 == 0 else NotImplemented

    monkeypatch.setattr(dispatch, "available", lambda: True)
    monkeypatch.setattr(dispatch, "kernel", lambda module, name: halves)
    monkeypatch.setattr(dispatch, "attached", [])
    half = dispatch.accelerated(cpu="halves")(lambda x: x - 1)
    assert half(jnp.arange(4)).tolist() == [1, 2, 3, 4]
    assert half(jnp.arange(3)).tolist() == half.by_jax(jnp.arange(3)).tolist() == [-1, 0, 1]
    with native.without_kernels():
        assert half(jnp.arange(4)).tolist() == [-1, 0, 1, 2]


@pytest.mark.parametrize("context", [native.without_kernels(), dispatch.kernels_alone(["no such"])])
def test_what_one_thread_traces_without_kernels_another_traces_with_them(
    context: AbstractContextManager[None], monkeypatch
) -> None:
    """The warm-up traces segments, whose kernels call few others, while the step is traced."""
    monkeypatch.setattr(dispatch, "available", lambda: True)
    monkeypatch.setattr(dispatch, "kernel", lambda module, name: lambda x: x + 1)
    monkeypatch.setattr(dispatch, "attached", [])
    function = dispatch.accelerated(cpu="more")(lambda x: x - 1)
    with ThreadPoolExecutor(1) as other, context:
        assert function(jnp.arange(2)).tolist() == [-1, 0]
        assert other.submit(function, jnp.arange(2)).result().tolist() == [1, 2]
    assert function(jnp.arange(2)).tolist() == [1, 2]
