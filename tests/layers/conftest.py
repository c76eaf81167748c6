"""What several tests of layers set up."""

import pytest

from srattn.ops import native as kernels


@pytest.fixture(params=[512, 128])
def at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Keys of a block, by a cache of that size."""
    for module in ("convolved", "calls"):  # of a block alone, and of several
        monkeypatch.setattr(f"srattn.ops.native.{module}.cache_bytes", lambda: 16 * 192 * request.param)
    assert [kernels.keys_at_once(keys) for keys in (1, 1023, 1024, 1610)] == [1, 1023, request.param, request.param]
    return request.param
