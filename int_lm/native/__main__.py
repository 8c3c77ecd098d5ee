"""Build the kernels for CPUs: `python -m int_lm.native`. int_lm also works without them."""

from int_lm.errors import UserError, reported
from int_lm.native import build


def main() -> None:
    """Build the kernels, and print that they are built, or that none are for this machine.

    Raises:
      UserError: this machine could have kernels, and has none.
    """
    said = build.build()
    if build.possible() and not build.library().exists():
        raise UserError(f"{said}; install one (such as g++), or mend that, and run this again")
    print(said)


if __name__ == "__main__":
    with reported("int_lm.native"):
        main()
