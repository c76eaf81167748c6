"""The device of a run."""

from __future__ import annotations

import torch

from srattn.errors import SrattnError


def pick_device(name: str) -> torch.device:
    """The device of a configuration.

    Raises:
        SrattnError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise SrattnError(f"device {name!r} cannot be used here: {reason}") from None
    return device
