"""``srattn report``: one run or several on one page that needs nothing beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from srattn.errors import SrattnError

if TYPE_CHECKING:
    import jsonargparse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=str, help="run folders of srattn train, finished or not")
    parser.add_argument("--out", type=str, default="report.html", help="the page to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that is there")


def run(args: jsonargparse.Namespace) -> int:
    out = Path(args.out)
    if out.exists() and not args.overwrite:
        raise SrattnError(f"{out} exists and is not overwritten; choose another --out, or --overwrite")
    from srattn.explain.compare import read_runs, write_comparison

    runs = read_runs(args.runs)
    write_comparison(out, runs, overwrite=args.overwrite)
    print(f"{out}: {'one run' if len(runs) == 1 else f'{len(runs)} runs compared'}")
    return 0
