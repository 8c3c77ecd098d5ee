"""Makes a program of integer operations (`program`) from the jaxpr of a function.

Functions that are called inside are inlined, axes of length 1 are left out, and a scan becomes a
loop. Operations whose results follow from ranges are simplified (`program.combine`).
"""

import ast
import functools
import linecache
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from int_lm.compile import nodes, program, ranges
from int_lm.compile.program import Loop, Node, Note, Shape, UnsupportedError, combine, constant

_POINTWISE = {
    **{name: name for name in ranges.COMPARISONS},
    **{name: name for name in ("add", "sub", "mul", "div", "rem", "max", "min", "abs", "neg")},
    **{name: name for name in ("sign", "and", "or", "xor", "not", "clz", "shift_left")},
    "shift_right_arithmetic": "shift_floor",
    "shift_right_logical": "shift_logical",
    "select_n": "select",
}
_REDUCTIONS = {
    "reduce_sum": "sum",
    "reduce_max": "largest",
    "reduce_min": "smallest",
    "argmax": "first_largest",
}
_CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2"}
_SAME = {"copy", "copy_p", "stop_gradient", "squeeze", "expand_dims", "optimization_barrier"}


def trace(
    function: Callable[..., Any], inputs: Sequence[Node], shapes: Sequence[Shape], sources: set[str]
) -> list[Node]:
    """The outputs of `function` for `inputs`, flattened as `jax.tree.leaves` does.

    Args:
      function: its arguments are arrays.
      inputs: made by `program.argument`, one for each argument.
      shapes: the arguments' shapes, with axes of length 1.
      sources: files whose statements are recorded in the notes of nodes.

    Raises:
      UnsupportedError: the function uses an operation that programs do not have.
    """
    structs = [
        jax.ShapeDtypeStruct(shape, np.dtype(node.dtype))
        for shape, node in zip(shapes, inputs, strict=True)
    ]
    closed = jax.make_jaxpr(function)(*structs)
    for variable in closed.jaxpr.outvars:
        _check_array("a result", variable.aval)
    outputs = _Reader(sources).run(closed.jaxpr, closed.consts, list(inputs))
    program.finish(outputs)
    return outputs


@functools.cache
def _statements(file: str) -> list[Any]:
    """Simple statements of a file, for `_note`."""
    simple = ast.Assign | ast.AugAssign | ast.Return | ast.Expr
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    return [node for node in ast.walk(tree) if isinstance(node, simple)]


def _named(target: ast.expr) -> str:
    """The name of an assignment's target without its axes, such as h for `h_PD`."""
    name = target.id if isinstance(target, ast.Name) else ""
    stem, _, axes = name.rpartition("_")
    return stem if stem and axes.isupper() else name


def _check_array(what: str, struct: Any) -> None:
    """Refuse a dtype that is no integer, and an array without entries."""
    if str(struct.dtype) not in ranges.BITS:
        raise UnsupportedError(f"{what} of dtype {struct.dtype}")
    if 0 in struct.shape:
        raise UnsupportedError(f"{what} of shape {list(struct.shape)}, which has no entries")


class _Reader:
    """Makes nodes from jaxprs; `sources` is that of `trace`."""

    def __init__(self, sources: set[str]) -> None:
        self.sources = sources
        self.outer = Note()  # origin of the call that is being inlined
        self.inside = False  # whether a call is being inlined

    def run(self, jaxpr: Any, constants: Sequence[Any], inputs: list[Node]) -> list[Node]:
        """The results of a jaxpr for these inputs."""
        values: dict[Any, Node] = {}

        def read(atom: Any) -> Node:
            return known(atom.val, atom.aval) if hasattr(atom, "val") else values[atom]

        def known(value: Any, struct: Any) -> Node:
            _check_array("a constant", struct)
            return constant(value, str(struct.dtype))

        for variable, value in zip(jaxpr.constvars, constants, strict=True):
            values[variable] = value if isinstance(value, Node) else known(value, variable.aval)
        values |= zip(jaxpr.invars, inputs, strict=True)
        for equation in jaxpr.eqns:
            found = self.equation(equation, [read(atom) for atom in equation.invars])
            values |= zip(equation.outvars, found, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def note(self, equation: Any) -> Note:
        """The statement of `sources` from which an equation comes, innermost call first.

        Inside of a function that is inlined, the statement is that of the call: JAX traces such a
        function once for all calls, and records only the first call.
        """
        if self.inside:
            return self.outer
        traceback = getattr(equation.source_info, "traceback", None)
        for frame in traceback.frames if traceback is not None else ():
            if frame.file_name in self.sources:
                line = frame.line_num
                around = [
                    node
                    for node in _statements(frame.file_name)
                    if node.lineno <= line <= (node.end_lineno or node.lineno)
                ]
                if not around:
                    return Note(linecache.getline(frame.file_name, line).strip())
                node = min(around, key=lambda node: (node.end_lineno or 0) - node.lineno)
                target = node.targets[0] if isinstance(node, ast.Assign) else None
                return Note(ast.unparse(node), _named(target) if target is not None else "")
        return self.outer

    def equation(self, equation: Any, operands: list[Node]) -> list[Node]:
        """The results of one equation."""
        name, params = equation.primitive.name, equation.params
        note = self.note(equation)
        if not equation.outvars:
            raise UnsupportedError(f"{name} without a result")
        if all(0 in variable.aval.shape for variable in equation.outvars):
            return [constant(0, str(variable.aval.dtype)) for variable in equation.outvars]
        for variable in equation.outvars:
            _check_array(name, variable.aval)
        result = equation.outvars[0].aval
        shape, dtype = tuple(result.shape), str(result.dtype)
        shapes = [tuple(atom.aval.shape) for atom in equation.invars]
        if name == "concatenate":
            full = [place for place, own in enumerate(shapes) if 0 not in own]
            operands, shapes = [operands[k] for k in full], [shapes[k] for k in full]
        elif any(0 in own for own in shapes):
            raise UnsupportedError(f"{name} of an array without entries")
        if name == "select_n" and len(operands) > 3:
            raise UnsupportedError(f"a select_n of {len(operands) - 1} cases")
        if name in _SAME:
            return operands
        if name in _CALLS:
            return self.call(params, operands, note)
        if name in _POINTWISE or name == "clamp":
            pairs = zip(operands, shapes, strict=True)
            operands = [nodes.fitted(node, own, shape) for node, own in pairs]
        if name in _POINTWISE:
            return [combine(_POINTWISE[name], operands, shape, dtype, note)]
        if name == "convert_element_type":
            return [combine("convert", operands, shape, dtype, note)]
        if name == "integer_pow" and params["y"] == 2:
            return [combine("mul", operands * 2, shape, dtype, note)]
        if name == "clamp":
            low, x, high = operands
            x = combine("max", [x, low], shape, dtype, note)
            return [combine("min", [x, high], shape, dtype, note)]
        if name in _REDUCTIONS:
            axes = nodes.kept_axes(shapes[0], params["axes"])
            x = nodes.full(operands[0], shapes[0])
            return [nodes.reduce(_REDUCTIONS[name], x, axes, dtype, note)]
        if name in ("scan", "split", "iota"):
            return getattr(self, name)(params, operands, equation, note)
        handler = nodes.HANDLERS.get(name)
        if handler is None:
            raise UnsupportedError(f"the operation {name}")
        return [handler(params, operands, shapes, shape, dtype, note)]

    def call(self, params: Any, operands: list[Node], note: Note) -> list[Node]:
        """The results of a called function, which is inlined."""
        closed = next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params)
        jaxpr, constants = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        before = self.outer, self.inside
        self.outer, self.inside = note, True
        found = self.run(jaxpr, constants, operands)
        self.outer, self.inside = before
        return found

    def iota(self, params: Any, operands: list[Node], equation: Any, note: Note) -> list[Node]:
        """Numbers that count along an axis."""
        shape, dtype = tuple(params["shape"]), str(np.dtype(params["dtype"]))
        axes = nodes.kept_axes(shape, [params["dimension"]])
        if not axes:
            return [constant(0, dtype)]
        most = shape[params["dimension"]] - 1
        return [Node("iota", (), nodes.kept(shape), dtype, 0, most, axes[0], note=note)]

    def split(self, params: Any, operands: list[Node], equation: Any, note: Note) -> list[Node]:
        """Parts of an array; each gets the name of its own target in the assignment."""
        x, start, parts = operands[0], 0, []
        shape, axis = tuple(equation.invars[0].aval.shape), params["axis"]
        for size, variable in zip(params["sizes"], equation.outvars, strict=True):
            first = [start * (k == axis) for k in range(len(shape))]
            parts.append(nodes.sliced(x, shape, first, tuple(variable.aval.shape), note))
            start += int(size)
        return parts

    def scan(self, params: Any, operands: list[Node], equation: Any, note: Note) -> list[Node]:
        """A loop. The range of a carried value holds before and after every turn."""
        consts, carry, length = params["num_consts"], params["num_carry"], params["length"]
        jaxpr, constants = params["jaxpr"].jaxpr, params["jaxpr"].consts
        fixed, starts = operands[:consts], operands[consts : consts + carry]
        stacked = operands[consts + carry :]
        carried_shapes = [nodes.kept(v.aval.shape) for v in jaxpr.invars[consts : consts + carry]]
        starts = [
            nodes.full(node, shape) for node, shape in zip(starts, carried_shapes, strict=True)
        ]
        widest = [ranges.limits(start.dtype) for start in starts]

        def attempt(handed: Sequence[tuple[int, int]]) -> Loop:
            loop = Loop(length, starts, reverse=params["reverse"])
            index = Node("index", (), (), "int32", 0, length - 1, loop)
            if params["reverse"]:
                last = constant(length - 1, "int32")
                index = combine("sub", [last, index], (), "int32")
            inputs = [
                Node("carried", (), start.shape, start.dtype, low, high, (loop, place))
                for place, (start, (low, high)) in enumerate(zip(starts, handed, strict=True))
            ]
            inputs += [
                nodes.take(x, index, 0, note) if length > 1 else x
                for x, v in zip(stacked, jaxpr.invars[consts + carry :], strict=True)
            ]
            found = self.run(jaxpr, constants, [*fixed, *inputs])
            shapes = [nodes.kept(v.aval.shape) for v in jaxpr.outvars]
            found = [nodes.full(node, shape) for node, shape in zip(found, shapes, strict=True)]
            loop.hands, loop.collected = found[:carry], found[carry:]
            return loop

        if length == 1:
            return self.run(jaxpr, constants, [*fixed, *starts, *stacked])
        loop = attempt(widest)
        narrow = [
            (min(start.low, hand.low), max(start.high, hand.high))
            for start, hand in zip(starts, loop.hands, strict=True)
        ]
        again = attempt(narrow)
        holds = all(
            low <= hand.low and hand.high <= high
            for (low, high), hand in zip(narrow, again.hands, strict=True)
        )
        loop = again if holds else loop
        node = Node("loop", (), (), "bool", 0, 0, loop, note=note)
        return [
            Node(
                "turn",
                (node,),
                part.shape if place < carry else (length, *part.shape),
                part.dtype,
                part.low,
                part.high,
                place,
            )
            for place, part in enumerate(loop.results)
        ]
