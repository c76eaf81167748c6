"""Whether there is a way to the Hugging Face hub, asked once and soon: its own client asks for half a minute, with a
warning each time, before it says that there is none."""

from __future__ import annotations

import os
import threading

from srattn.errors import SrattnError

SECONDS = 5.0
"""How long an answer may take; HF_HUB_ETAG_TIMEOUT, the client's own limit, overrules it."""
_LIMIT = "HF_HUB_ETAG_TIMEOUT"


def reach_hub() -> None:
    """Returns when the hub answers, whatever it says; at once where HF_HUB_OFFLINE keeps the client from asking.

    Raises:
        SrattnError: no way there, or no answer in time.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return
    limit = float(constants.HF_HUB_ETAG_TIMEOUT) if _LIMIT in os.environ else SECONDS
    found: list[Exception | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=2 * limit)
            found.append(None)
        except Exception as error:  # of requests or httpx, whichever the client has
            found.append(error)

    # Apart, because the look-up of a name knows no limit.
    asker = threading.Thread(target=ask, name="srattn-reach", daemon=True)
    asker.start()
    asker.join(limit)
    if not found:
        raise SrattnError(f"{constants.ENDPOINT} does not answer within {limit:g} seconds ({_LIMIT} allows more)")
    if found[0] is not None:
        raise SrattnError(f"{constants.ENDPOINT} cannot be reached ({found[0] or type(found[0]).__name__})") from None
