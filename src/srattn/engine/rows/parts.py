"""Answers for a whole data set in one Parquet file, by way of numbered parts: a kill costs the part under way alone.

`features.parquet.parts/` holds `manifest.json` and `part-00000.parquet`, ... , each written aside and renamed, with the
range of its rows and the fingerprint of model, data and options. When all are there they become `features.parquet` by
one rename, and the folder goes. Under torchrun rank r of n takes the parts r, r + n, ...; rank 0 joins them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srattn.engine.rows.base import Rows, Source
from srattn.engine.rows.ranks import Ranks
from srattn.engine.rows.watch import Watch
from srattn.errors import SrattnError, missing_extra
from srattn.files import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
PART_ROWS = 1024
_KEY = b"srattn"
_MANIFEST = "manifest.json"

Answer = Callable[[Iterator[Source], int, Callable[[int], None]], "pa.Table"]
"""From the sources of a part, and their number, to its rows in their order; tells of those that are done."""


def folder_of(out: Path) -> Path:
    """Where the parts of `out` are kept until they are joined."""
    return out.with_name(out.name + ".parts")


def check_suffix(out: Path) -> None:
    """Raises SrattnError where `out` is not named as a Parquet file."""
    if out.suffix.lower() != ".parquet":
        raise SrattnError(f"--out {out}: the result is a Parquet file, name it {out.stem or out.name}.parquet")


def check_free(out: Path) -> None:
    """Raises SrattnError if `out` exists and nothing of it is left to do: before a model is loaded for it."""
    check_suffix(out)
    if os.path.lexists(out) and not folder_of(out).is_dir():
        raise SrattnError(f"{out} exists and is not overwritten; remove it or choose another path")


class Parts:
    """The parts of `out` and what they must be of.

    Args:
        facts: what defines the answers: model, preprocessing, options. Batch size, threads and device are no part of
            it, so that a run may go on elsewhere; the last bits of its numbers may then be those of the other machine.

    Raises:
        SrattnError: `out` exists, or its parts are of another model, other data or other options.
    """

    def __init__(self, out: Path, rows: Rows, facts: Mapping[str, Any], part_rows: int) -> None:
        check_suffix(out)
        self.out, self.folder = out, folder_of(out)
        digest = hashlib.sha256()
        for line in rows.stamp():
            digest.update(line.encode(errors="surrogateescape") + b"\n")
        self.facts = json.loads(json.dumps({**facts, "data": digest.hexdigest(), "rows": len(rows)}))
        self.fingerprint = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()
        self.rows, self.part_rows = len(rows), part_rows

    @property
    def count(self) -> int:
        return -(-self.rows // self.part_rows)

    def span(self, part: int) -> tuple[int, int]:
        """The rows of a part, from and up to."""
        return part * self.part_rows, min(self.rows, (part + 1) * self.part_rows)

    def size(self, part: int) -> int:
        start, stop = self.span(part)
        return stop - start

    def path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.parquet"

    def begin(self) -> bool:
        """Makes the folder, or goes on with the one that is there; True where `out` is complete already."""
        if os.path.lexists(self.out):
            # Killed between the rename and the removal of the parts.
            if self.folder.is_dir() and _facts_of(self.out).get("fingerprint") == self.fingerprint:
                shutil.rmtree(self.folder)
                return True
            raise SrattnError(f"{self.out} exists and is not overwritten; remove it or choose another path")
        manifest = self.folder / _MANIFEST
        if not manifest.exists():
            with atomic_path(manifest) as aside:
                aside.write_text(json.dumps(self._manifest(), indent=1) + "\n", encoding="utf-8")
        self.join()
        return False

    def join(self) -> None:
        """Takes up what the manifest says, of which another process may be the author."""
        manifest = self.folder / _MANIFEST
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))
            facts, part_rows = dict(found["facts"]), int(found["part_rows"])
            if found["format"] != FORMAT or part_rows < 1:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise SrattnError(f"{manifest} is not of this version: remove {self.folder} to begin anew") from None
        if facts != self.facts:
            names = sorted(name for name in {*facts, *self.facts} if facts.get(name) != self.facts.get(name))
            raise SrattnError(
                f"{self.folder} was begun with other {', '.join(names).replace('_', ' ')}: give what it was begun "
                "with, choose another --out, or remove it to begin anew"
            )
        self.part_rows = part_rows  # parts of another size would not fit between those that are there

    def is_done(self, part: int) -> bool:
        """Whether a part is there, whole and of this job; one that is not is made again."""
        start, stop = self.span(part)
        wanted = {"fingerprint": self.fingerprint, "start": start, "stop": stop}
        return self.path(part).is_file() and _facts_of(self.path(part)) == wanted

    def write(self, part: int, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        start, stop = self.span(part)
        assert len(table) == stop - start, "an answer for every row"
        facts = {"fingerprint": self.fingerprint, "start": start, "stop": stop}
        with atomic_path(self.path(part), overwrite=True) as aside:
            pq.write_table(table.replace_schema_metadata({_KEY: json.dumps(facts)}), aside, compression="zstd")

    def merge(self, schema: pa.Schema) -> None:
        """All parts, in order, as `out`; then removes the parts."""
        import pyarrow.parquet as pq

        facts = {"fingerprint": self.fingerprint, **self.facts}
        schema = schema.with_metadata({_KEY: json.dumps(facts)})
        whole = self.folder / "whole.parquet"  # aside in the folder, so that a kill leaves nothing beside it
        with (
            atomic_path(whole, overwrite=True) as aside,
            pq.ParquetWriter(aside, schema, compression="zstd") as writer,
        ):
            for part in range(self.count):
                # A row group for each part: no more than one is in memory.
                writer.write_table(pq.read_table(self.path(part)).cast(schema))
        try:
            os.link(whole, self.out)  # unlike a rename, a link never replaces
        except FileExistsError:
            raise SrattnError(f"{self.out} has come into being meanwhile; the result is {whole}") from None
        except OSError:  # a file system without hard links
            os.rename(whole, self.out)
        shutil.rmtree(self.folder)

    def _manifest(self) -> dict[str, Any]:
        return {"format": FORMAT, "facts": self.facts, "part_rows": self.part_rows}


def write_rows(parts: Parts, rows: Rows, schema: pa.Schema, answer: Answer, watch: Watch, ranks: Ranks) -> None:
    """Computes the parts that are missing (of this rank) and, on rank 0, joins them.

    Raises:
        SrattnError: see `Parts`; another rank failed; whatever `answer` raises.
    """
    try:
        if ranks.rank == 0:
            complete = parts.begin()
            ranks.tell("begun", "complete" if complete else parts.fingerprint)
        else:
            complete = (said := ranks.ask("begun")) == "complete"
            if not complete and said != parts.fingerprint:
                raise SrattnError(f"rank {ranks.rank} sees another model or other data than rank 0")
        if complete:
            return
        parts.join()
        mine = range(ranks.rank, parts.count, ranks.world)
        missing = [part for part in mine if not parts.is_done(part)]
        of_mine = sum(map(parts.size, mine))
        watch.start(of_mine - sum(map(parts.size, missing)), of_mine)
        for part in missing:
            parts.write(part, answer(rows.read(*parts.span(part)), parts.size(part), watch.advance))
    except BaseException as error:
        ranks.fail(error)
        raise
    finally:
        watch.close()
    ranks.tell(f"done {ranks.rank}", "done")
    if ranks.rank == 0:
        ranks.wait_for_all(lambda: sum(1 for _ in parts.folder.glob("part-*.parquet")))
        missing = [part for part in range(parts.count) if not parts.is_done(part)]
        if missing:
            raise SrattnError(f"{len(missing)} part(s) of {parts.folder} are missing: give the same command again")
        parts.merge(schema)


def _facts_of(path: Path) -> dict[str, Any]:
    """What we wrote into a Parquet file beside its rows; empty for any other file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("pyarrow", "train") from None
    try:
        facts = json.loads((pq.read_metadata(path).metadata or {}).get(_KEY, b"{}"))
    except (pa.ArrowInvalid, OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
