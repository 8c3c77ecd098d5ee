"""Counts files and records that are left out or read as something else, by kind."""

from collections.abc import Callable, Mapping
from typing import Any

from int_lm.errors import UserError

DAMAGED = "left out damaged records"
EMPTY = "left out empty files"
NO_TEXT = "left out records without text"
ZERO_BYTE = "left out records with a zero byte in their text"


class Tally:
    """Counts of what was left out or read as something else, with the place of the first.

    A tally is part of a position, so that reading from a position continues the counts.
    """

    def __init__(self, most_damaged: int = 0, found: Mapping[str, Any] | None = None) -> None:
        """Begin to count.

        Args:
          most_damaged: `data.skip_damaged`, damaged records that may be left out.
          found: the counts so far, as `state` returns them.
        """
        self._most = most_damaged
        self._found = {
            what: (int(count), str(first)) for what, (count, first) in (found or {}).items()
        }

    def add(self, what: str, place: str) -> None:
        """Count one.

        Args:
          what: what happened, such as "left out empty files". It begins the sentence.
          place: file and, where there is one, line, row or byte.
        """
        count, first = self._found.get(what, (0, place))
        self._found[what] = count + 1, first

    def add_damaged(self, place: str, problem: str) -> None:
        """Count a damaged record.

        Raises:
          UserError: there are more than may be left out.
        """
        self.add(DAMAGED, f"{place}: {problem}")
        count, first = self._found[DAMAGED]
        if count <= self._most:
            return
        if count == 1:
            raise UserError(
                f"{place}: {problem}; repair or remove the record, or skip up to N such records "
                "with --data.skip_damaged N"
            )
        raise UserError(
            f"{count} damaged records, more than --data.skip_damaged {self._most} skips: the last "
            f"one is {place}: {problem}; the first one is {first}"
        )

    def state(self) -> dict[str, list[Any]]:
        """A JSON value: [count, place of the first] of everything that was counted."""
        return {what: [count, first] for what, (count, first) in self._found.items()}

    def tell(self, notice: Callable[[str], None] | None) -> None:
        """Call `notice` with one sentence for each kind."""
        for what, (count, first) in self._found.items():
            if notice:
                notice(f"{what}: {count:,} (first: {first})")


def is_state(value: Any) -> bool:
    """Whether a JSON value is the state of a tally."""
    return isinstance(value, dict) and all(
        isinstance(entry, list)
        and len(entry) == 2
        and type(entry[0]) is int
        and entry[0] > 0
        and isinstance(entry[1], str)
        for entry in value.values()
    )


def damaged(state: Mapping[str, Any]) -> tuple[int, str]:
    """(number of damaged records, the first one) of a state."""
    count, first = state.get(DAMAGED, (0, ""))
    return count, first
