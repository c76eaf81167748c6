"""One command over a whole data set: model, rows, output, parts, ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from srattn.data.decode import BadImage
from srattn.engine.embed import part_rows_for
from srattn.engine.open_model import model_facts
from srattn.engine.rows.answer import Answers, Output
from srattn.engine.rows.base import Rows
from srattn.engine.rows.parts import PART_ROWS, Parts, write_rows
from srattn.engine.rows.ranks import Ranks
from srattn.engine.rows.watch import Watch
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError


@dataclasses.dataclass(frozen=True)
class Written:
    """What became of it: the file, its rows, and how many of them have no answer."""

    path: Path
    rows: int
    bad: int


def answer_all(
    out: str | Path,
    rows: Rows,
    run: LoadedRun,
    output: Output,
    *,
    batch_size: int = 64,
    workers: int = 0,
    part_rows: int | None = None,
    on_bad_image: Callable[[BadImage], None] | None = None,
    watch: Watch | None = None,
    ranks: Ranks | None = None,
) -> Written | None:
    """Writes `output` of every row to the Parquet file `out`, going on with what an earlier call left.

    Args:
        part_rows: rows of a part, which are what a kill can cost; an earlier call's number stays.
        on_bad_image: told of an unreadable image, whose row says why; it may raise to stop instead.

    Returns:
        What was written; None on a rank other than the first.

    Raises:
        SrattnError: `out` exists, there are no rows, or an earlier call was of another model, other data or options.
    """
    if not len(rows):
        raise SrattnError("the data has no images")
    ranks = ranks or Ranks()
    answers = Answers(run, output, batch_size, workers, on_bad_image)
    facts = {**model_facts(run), **output.facts()}
    parts = Parts(Path(out), rows, facts, part_rows or part_rows_for(answers.like, PART_ROWS))
    write_rows(parts, rows, answers.schema(), answers, watch or Watch(), ranks)
    return Written(parts.out, len(rows), _count_bad(parts.out)) if ranks.rank == 0 else None


def _count_bad(path: Path) -> int:
    import pyarrow.parquet as pq

    errors = pq.read_table(path, columns=["error"]).column("error")
    return len(errors) - errors.null_count
