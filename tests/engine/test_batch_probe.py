"""The process that measures may say as much as it likes on standard error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from srattn.engine import batch_probe
from srattn.engine.batch_probe import Child, Trial

CHATTY = """#!{python}
import sys
sys.stdin.readline()
print("w" * 300_000, "the end", file=sys.stderr, flush=True)
for line in sys.stdin:
    if int(line) > 4:
        sys.exit(3)
    print('{{"batch": %d, "seconds": 0.5, "peak": 7}}' % int(line), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the script is for a shell")
def test_many_warnings_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "chatty"
    script.write_text(CHATTY.format(python=sys.executable))
    script.chmod(0o700)
    monkeypatch.setattr(batch_probe.sys, "executable", str(script))
    with Child({}) as probe:
        assert probe(4) == Trial(4, 0.5, 7)
        with pytest.raises(RuntimeError, match=r"ended with code 3: w+ the end$"):
            probe(8)
