"""How arguments of the command line become numbers: in ASCII digits, or not at all.

The library rounds: `snapshot withdraw 101.6` would withdraw service 102. It also reads digits of other
scripts, underscores, and `0x`.
"""

from collections.abc import Sequence
from typing import Any, Final, get_args

from cyclopts import Token, convert

from aegisflux.domain.digits import decimal, integer

WHOLE: Final = "expected an integer in ASCII digits without leading zeros"


def converted(kind: Any, tokens: Sequence[Token]) -> Any:
    """Return the value of an argument; raises ValueError for a number in another spelling than the usual
    one."""
    kinds = {kind, *get_args(kind)}
    for token in tokens:
        if int in kinds and integer(token.value) is None:
            raise ValueError(f"{WHOLE}, got {token.value!r}")
        if float in kinds and decimal(token.value) is None:
            raise ValueError(f"expected a number such as 0.25, got {token.value!r}")
    return convert(kind, tokens)
