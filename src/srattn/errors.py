"""The one error class that users see, and the two hints that its messages carry."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SrattnError(ValueError):
    """Something that the user can put right: bad input, a bad option, a missing extra.

    The message is one line that names the values and the way out. The command line prints it as
    ``srattn: error: MESSAGE`` and exits with code 2; any other exception is a defect of ours.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message about an unknown `name`.

    Returns ``"; did you mean 'x'?"`` for the closest of `choices` (letter case is ignored), or ``""`` for none.
    """
    by_folded = {choice.casefold(): choice for choice in choices}
    match = difflib.get_close_matches(str(name).casefold(), by_folded, n=1)
    return f"; did you mean {by_folded[match[0]]!r}?" if match else ""


def missing_extra(package: str, extra: str) -> SrattnError:
    """The error (to be raised by the caller) for a `package` that only the optional `extra` installs."""
    return SrattnError(
        f'{package} is not installed and is needed for this; install it with: pip install "srattn[{extra}]"'
    )
