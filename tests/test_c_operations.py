"""Programs of `int_lm.compile`, written as C: the numbers of JAX, or why there are none."""

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_c_runtime import SANITIZED, needed, said

from int_lm.arithmetic import fixed
from int_lm.compile import c, program, trace
from int_lm.compile.program import UnsupportedError
from int_lm.export import c_runtime

PARTS = Path(c_runtime.__file__).parent / "c"


def traced(function: Callable[..., Any], arrays: Sequence[Any]) -> list[program.Node]:
    """The program of a function of arrays u, v, ..., which are never the least of int8."""
    inputs = []
    for name, array in zip("uvw", arrays, strict=False):
        low, high = (-127, 127) if array.dtype == np.int8 else (-(2**31), 2**31 - 1)
        inputs.append(program.argument(name, array.shape, str(array.dtype), low, high))
    return trace.trace(function, inputs, [array.shape for array in arrays], set())


def written(outputs: Sequence[program.Node]) -> c.Written:
    """Statements that compute outputs, as int32 arrays out0, out1, ..."""
    places = [f"out{k}" if node.shape else f"out{k}[0]" for k, node in enumerate(outputs)]
    names = {name: name for name in "uvw"}
    return c.write(list(zip(outputs, places, strict=True)), names, {*"uvw", *places})


def check(function: Callable[..., Any], arrays: Sequence[np.ndarray], directory: Path) -> None:
    """The C program of a function prints what JAX computes."""
    outputs = traced(function, arrays)
    code = written(outputs)
    lines = [(PARTS / f"{name}.c").read_text() for name in ("arithmetic", "linear")]
    for name, array in [*zip("uvw", arrays, strict=False), *code.tables.items()]:
        values = ", ".join(map(str, array.reshape(-1).tolist())).replace(str(-(2**31)), "INT32_MIN")
        lines.append(f"static const {array.dtype}_t {name}[] = {{{values}}};")
    lines.append("int main(void) {")
    for k, node in enumerate(outputs):
        lines.append(f"    int32_t out{k}[{int(np.prod(node.shape))}];")
    lines += [line.replace("linear(", "linear_rows(") for line in code.lines]
    for k, node in enumerate(outputs):
        size = int(np.prod(node.shape))
        lines.append(f'    for (int i = 0; i < {size}; i++) printf("%ld ", (long)out{k}[i]);')
    lines += ['    puts("");', "    return 0;", "}", ""]
    source, binary = directory / "operations.c", directory / "operations"
    source.write_text("\n".join(lines))
    flags = ("-std=c99", "-DPLAIN", "-O1", *SANITIZED)
    subprocess.run(["gcc", *flags, "-o", binary, source], check=True)
    found = [int(word) for word in said(binary).split()]
    expected = [np.asarray(value).reshape(-1) for value in jax.jit(function)(*arrays)]
    assert found == np.concatenate(expected).tolist()


def test_operations_equal_jax(tmp_path: Path) -> None:
    """Wrap-around, shifts, floors, reductions, products and scans that the networks lack."""
    needed("gcc")

    def function(x_AB: jax.Array, y_B: jax.Array, w_CB: jax.Array) -> list[jax.Array]:
        y = y_B.astype(jnp.int32)
        unsigned, bytes_AB = x_AB.astype(jnp.uint32), x_AB.astype(jnp.uint8)
        word = unsigned * np.uint32(2654435761) >> np.uint32(7)
        product = jax.lax.dot_general(x_AB, x_AB, (((1,), (1,)), ((), ())))

        def turn(carry: jax.Array, row_B: jax.Array) -> tuple[jax.Array, Any]:
            return carry * 3 + row_B.sum(), (carry, row_B + carry)

        forwards, there = jax.lax.scan(turn, y[0], x_AB)
        backwards, back = jax.lax.scan(turn, y[0], x_AB, reverse=True)
        return [
            x_AB * x_AB + y[None],
            (x_AB << 5) - (x_AB >> 3),
            -(x_AB // 7) * jnp.sign(x_AB),
            word.astype(jnp.int32) ^ ~x_AB,
            jax.lax.clz(x_AB),
            jnp.maximum(jax.lax.clz(-1 - (x_AB & 0xFFFF)), 1) + y[None],
            x_AB.sum(axis=0),
            *((x.sum() >> np.uint32(7)).astype(jnp.int32) for x in (unsigned, ~unsigned)),
            jax.lax.reduce(bytes_AB, np.uint8(0), jax.lax.add, (1,)).astype(jnp.int32),
            x_AB.max(axis=1) - x_AB.min(axis=1),
            jnp.argmax(y),
            product,
            x_AB.T.reshape(2, -1),
            x_AB.astype(jnp.int8).astype(jnp.int32) + jnp.concatenate([y[:0], y, y])[4:][None],
            fixed.dot(y_B[None], w_CB),
            *(forwards, *there, backwards, *back),
        ]

    generator = np.random.default_rng(0)
    arrays = [
        generator.integers(-(2**31), 2**31, (3, 4)).astype(np.int32),
        generator.integers(-127, 128, 4).astype(np.int8),
        generator.integers(-127, 128, (5, 4)).astype(np.int8),
    ]
    arrays[0][:, 0] = -(2**31), -1, 2**31 - 1
    check(function, arrays, tmp_path)


def test_stacked_matrices_of_many_gibibytes_are_found(tmp_path: Path) -> None:
    """Where the last of 3 matrices of 40000 x 40000 begins does not fit 32 bits."""
    needed("gcc")

    def function(w_LBB: jax.Array, x_B: jax.Array) -> Any:
        def turn(x_B: jax.Array, w_BB: jax.Array) -> tuple[jax.Array, None]:
            return fixed.saturate(fixed.dot(x_B[None], w_BB)[0]), None

        return jax.lax.scan(turn, x_B, w_LBB)[0]

    def both(w_LBB: jax.Array, x_B: jax.Array) -> Any:
        return function(w_LBB, x_B) + w_LBB[0, 0, 0]

    structs = [jax.ShapeDtypeStruct((3, 40_000, 40_000), jnp.int8)]
    structs.append(jax.ShapeDtypeStruct((40_000,), jnp.int8))
    for of, called in ((function, "linear"), (both, "linear_rows")):
        code = written([traced(of, structs)[0]])
        product = re.compile(rf"{called}\(\w+, u \+ (.*), \w+, \d+, \d+\)")
        (start,) = (found for line in code.lines if (found := product.search(line)))
        source, binary = tmp_path / "start.c", tmp_path / "start"
        (turn,) = re.findall(r"turn\w*", start[1])
        lines = [(PARTS / f"{name}.c").read_text() for name in ("arithmetic", "linear")]
        lines += [f"int main(void) {{ int32_t {turn} = 2;"]
        lines += [f'printf("%llu", (unsigned long long)({start[1]})); return 0; }}', ""]
        source.write_text("\n".join(lines))
        for plain in (["-DPLAIN"], []):
            subprocess.run(
                ["gcc", "-std=c99", *plain, *SANITIZED, "-o", binary, source], check=True
            )
            assert int(said(binary)) == 2 * 40_000**2


def _cases(x_AB: jax.Array) -> Any:
    return jax.lax.select_n(x_AB % 3, x_AB, x_AB + 1, x_AB + 2)


def _axes(x_AB: jax.Array) -> Any:
    return jnp.broadcast_to(x_AB[:2, :2].reshape(2, 2, 1, 1, 1, 1), (2,) * 6) * 3


def _real(x_AB: jax.Array) -> Any:
    table_B = np.array([[1.5, 2.5, 3.5, 4.5]], np.float32)
    return x_AB + jax.lax.convert_element_type(table_B, np.int32)


def _carry(x_AB: jax.Array) -> Any:
    def turn(carry: Any, row: jax.Array) -> Any:
        return (carry[0] + row.sum(), carry[1] * 0.5), None

    return jax.lax.scan(turn, (jnp.int32(0), jnp.float32(1)), x_AB)[0][0]


def _nothing(x_AB: jax.Array) -> Any:
    jax.lax.scan(lambda carry, row: (None, None), None, x_AB)
    return x_AB


def _empty(x_AB: jax.Array) -> Any:
    return jnp.sum(x_AB[:0]) + x_AB[0, 0]


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (_cases, "a select_n of 3 cases"),
        (_axes, "an array of 6 axes longer than 1"),
        (_real, "a constant of dtype float32"),
        (_carry, "of dtype float32"),
        (_nothing, "scan without a result"),
        (_empty, "reduce_sum of an array without entries"),
        (lambda x_AB: x_AB[:0], r"a result of shape \[0, 4\], which has no entries"),
    ],
)
def test_what_has_no_counterpart_is_named(function: Callable[..., Any], sentence: str) -> None:
    """An export without runtime.c says why; nothing else is raised."""
    with pytest.raises(UnsupportedError, match=sentence):
        written(traced(function, [jax.ShapeDtypeStruct((3, 4), jnp.int32)]))


def test_a_concatenation_of_one_part(tmp_path: Path) -> None:
    """One part along an axis of length 1 is that part."""
    x = jnp.zeros((1, 4), jnp.int32)
    closed = jax.make_jaxpr(lambda x: jax.lax.concatenate_p.bind(x, dimension=0))(x)
    assert [equation.primitive.name for equation in closed.eqns] == ["concatenate"]
    (node,) = traced(lambda x: jax.lax.concatenate_p.bind(x, dimension=0), [x])
    assert (node.operation, node.value) == ("input", "u")
