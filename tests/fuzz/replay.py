"""One case by its name and seed, for the fuzzer and again by hand: ``python -m tests.fuzz.replay rank_reward 17``."""

from __future__ import annotations

import sys

from tests.fuzz import losses, operators
from tests.fuzz.draws import Draws

NAMES = (*operators.CASES, *losses.LOSSES)


def run(name: str, seed: int) -> None:
    """AssertionError, with the case and how to run it again, where a result is not as accurate as it must be."""
    draws, case = Draws(seed), None
    try:
        if name in operators.CASES:
            case = operators.CASES[name](draws)
            operators.compare(name, case)
        else:
            case = losses.LOSSES[name](draws)
            losses.compare(case)
    except Exception as error:
        again = f"again: python -m tests.fuzz.replay {name} {seed}"
        raise AssertionError(f"{name}, seed {seed}: {error}\ncase: {case}\n{again}") from error


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
