"""Programs that are compiled quickly, or whose trace is dropped, compute what `jax.jit` does."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from int_lm.model import compiling


@pytest.mark.parametrize("options", [compiling._OPTIONS, {"xla_has_no_such_option": True}])
def test_an_option_that_xla_does_not_have_is_left_out(options: dict, monkeypatch) -> None:
    monkeypatch.setattr(compiling, "_OPTIONS", options)
    compiling._options.cache_clear()
    try:
        assert compiling.quick_jit(lambda x: x + 1)(jnp.int32(2)) == 3
        has = jax.default_backend() == "cpu" and options == {"xla_cpu_use_fusion_emitters": False}
        assert (compiling._options() == options) == has
    finally:
        compiling._options.cache_clear()


class Doubling:
    """A function that can be seen to go."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return 2 * x


def test_a_program_is_compiled_once_and_what_was_traced_goes() -> None:
    made: list[weakref.ref] = []

    def jitted():
        function = Doubling()
        made.append(weakref.ref(function))
        return jax.jit(function)

    program = compiling.Program(jitted)
    program.compile(jax.ShapeDtypeStruct((3,), jnp.int32))
    for values in ([1, 2, 3], [4, 5, 6]):
        assert program(np.array(values, np.int32)).tolist() == [2 * x for x in values]
    gc.collect()
    assert [one() for one in made] == [None]
    assert program(np.arange(2, dtype=np.int8)).tolist() == [0, 2]  # of another shape and dtype
    assert len(made) == 2
