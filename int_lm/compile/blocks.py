"""Blocks of C: scalars, and loops over arrays that compute several operations together."""

from collections.abc import Iterator, Sequence

from int_lm.compile import expressions, layout, program, stages
from int_lm.compile.program import Node
from int_lm.compile.reading import Reader

INLINE = 60  # characters of an expression that needs no name of its own


class BlockWriter(Reader):
    """Writes the statements that compute nodes. A subclass defines `barrier`."""

    def block(self, nodes: Sequence[Node], outputs: Sequence[tuple[Node, str]]) -> None:
        """Write the statements that compute `nodes` and store `outputs`, (node, C array) each."""
        self.turns_of |= {(n.operands[0], n.value): n for n in nodes if n.operation == "turn"}
        self.places |= {n: place for n, place in reversed(outputs) if n.operation == "turn"}
        sites = [node for node in nodes if not stages.is_virtual(node) and node not in self.stored]
        own = set(sites)
        needs = {node: list(self.needs(node, own)) for node in sites}
        readers: dict[Node, list[tuple[Node, bool]]] = {node: [] for node in sites}
        for node in sites:
            for needed, same in needs[node]:
                readers[needed].append((node, same))
        places: dict[Node, list[str]] = {}
        kept: set[Node] = set()
        for node, place in outputs:
            if node in own and not any(place == p for p in places.get(node, [])):
                places.setdefault(node, []).append(place)
            kept |= {needed for needed, _ in self.walk(node, own, True)}
        self.final = {
            node
            for node in sites
            if not any(reader.note == node.note for reader, _ in readers[node])
        }
        stage = stages.assigned(sites, needs, readers, kept)
        for now in range(max(stage.values(), default=-1) + 1):
            group = [node for node in sites if stage[node] == now]
            for node in (node for node in group if stages.kind(node) == "scalar"):
                self.scalar(node, readers[node], kept, group)
            shapes = dict.fromkeys(
                stages.loop_shape(node) for node in group if stages.kind(node) == "loop"
            )
            for shape in shapes:
                members = [
                    n for n in group if stages.kind(n) == "loop" and stages.loop_shape(n) == shape
                ]
                self.loop(shape, members, readers, kept, places)
            for node in (node for node in group if stages.kind(node) == "barrier"):
                self.barrier(node, places.get(node, []))
        for node, place in outputs:
            if self.stored.get(node) != place:
                self.copy(node, place)

    def walk(self, node: Node, own: set[Node], same: bool) -> Iterator[tuple[Node, bool]]:
        """(site from which `node` is computed, whether only at the index of the reader)."""
        if node in own:
            yield node, same
        elif node not in self.stored:
            for operand in node.operands:
                yield from self.walk(operand, own, same and node.operation == "convert")

    def needs(self, node: Node, own: set[Node]) -> Iterator[tuple[Node, bool]]:
        """(site that `node` reads, whether only at the same index) of every such site."""
        shape = stages.loop_shape(node) if stages.kind(node) == "loop" else ()
        for operand in node.operands:
            for needed, same in self.walk(operand, own, True):
                yield needed, same and needed.shape == shape and stages.kind(node) != "barrier"

    def scalar(self, node, readers, kept, group) -> None:
        """Write the declaration of a scalar, or leave its expression to its only reader."""
        once = len(readers) == 1 and node not in kept
        once = once and readers[0][0] in group and stages.kind(readers[0][0]) == "scalar"
        if once and len(self.expression(node, ())) <= INLINE:
            self.inline.add(node)
            return
        self.remark([node])
        text = self.expression(node, ())
        name = self.name(node)
        self.say(f"const {expressions.register(node.dtype)} {name} = {expressions.bare(text)};")
        self.stored[node] = name

    def loop(self, shape, members, readers, kept, places) -> None:
        """Write one loop over `shape` that computes all members."""
        counters = self.counters(shape)
        inside = set(members)
        lines: list[str] = []
        self.remark(members)
        for node in members:
            if node.operation in program.REDUCTIONS:
                name = self.name(node)
                self.start(node, name)
                lines.append(self.accumulated(node, name, self.at(node.operands[0], counters)))
                self.stored[node] = expressions.wrapped(name, node.dtype) if node.wraps else name
                continue
            text = self.expression(node, counters)
            mine = readers[node]
            stored = node in kept or any(r not in inside or not same for r, same in mine)
            half = len(mine) == 1 and (node.operation, mine[0][0].operation) == ("max", "min")
            if not stored and len(mine) == 1 and (len(text) <= INLINE or half):
                self.inline.add(node)
                continue
            name = self.name(node)
            if stored:
                array = (places.get(node) or [name])[0]
                if array == name:
                    self.declare(node, name)
                self.stored[node] = array
                target = layout.entry(array, node.shape, counters)
                reread = any(r in inside and same for r, same in mine)
                if not reread:
                    lines.append(layout.assignment(node, target, text))
                    continue
                if array == name:
                    name = self.fresh(name)
                lines.append(
                    f"const {expressions.register(node.dtype)} {name} = {expressions.bare(text)};"
                )
                lines.append(layout.assignment(node, target, name))
            else:
                lines.append(
                    f"const {expressions.register(node.dtype)} {name} = {expressions.bare(text)};"
                )
            self.local[node] = counters, name
        self.nest(shape, counters, lines)
        for node in members:
            self.local.pop(node, None)

    def start(self, node: Node, total: str) -> None:
        """Declare the variable in which a reduction accumulates its result."""
        kind = expressions.register(node.dtype)
        kind = expressions.unsigned(kind) if node.wraps else kind
        x = node.operands[0]
        first = {"sum": 0, "largest": x.low, "smallest": x.high}[node.operation]
        self.say(f"{kind} {total} = {expressions.literal(first, node.dtype)};")

    def accumulated(self, node: Node, total: str, entry: str) -> str:
        """The statement that adds one entry to a reduction."""
        if node.operation == "sum":
            kind = expressions.unsigned(expressions.register(node.dtype))
            own = f"({kind}){layout.bracketed(entry)}" if node.wraps else expressions.bare(entry)
            return f"{total} += {own};"
        sign = ">" if node.operation == "largest" else "<"
        return f"{total} = {entry} {sign} {total} ? {entry} : {total};"

    def barrier(self, node: Node, places: Sequence[str]) -> None:
        """Write a node of the kind "barrier", and store it at `places`."""
        raise NotImplementedError
