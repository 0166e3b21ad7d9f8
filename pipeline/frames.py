"""Results as pandas.DataFrame; the only importer of pandas, and only on demand."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(rows: Iterable[Mapping[str, Any]]) -> "DataFrame":
    """A row for each mapping, columns in the order in which their names first appear.

    Raises ConfigError where pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise ConfigError(
            "to_frame() needs the package pandas, not installed; "
            "pip install -r requirements-notebook.txt"
        ) from error
    found = [dict(row) for row in rows]
    columns = dict.fromkeys(name for row in found for name in row)
    return DataFrame(found, columns=list(columns))


class Records(list[dict[str, Any]]):
    """Flat objects with the same names, such as the cells of a table."""

    def to_frame(self) -> "DataFrame":
        """A row for each object. Raises ConfigError where pandas is not installed."""
        return frame(self)
