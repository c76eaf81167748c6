"""What the tests of the verbs rely on."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """The kernels are there, so that no verb has to say that it compiles them."""
    from srattn.ops import native

    native.why_not()
