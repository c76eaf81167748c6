"""Whole data sets as rows in a fixed order: `open_rows` finds them, `write_rows` answers them into Parquet."""

from srattn.engine.rows.base import Joined as Joined
from srattn.engine.rows.base import Rows as Rows
from srattn.engine.rows.base import Source as Source
from srattn.engine.rows.find import open_rows as open_rows
