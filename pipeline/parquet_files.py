"""Columns of parquet files, by pyarrow, the one optional package that reads them."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DataError

if TYPE_CHECKING:
    import pyarrow

MOST_ROWS = 50_000_000
MOST_GROUP = 4 << 30  # bytes of one row group of images, as it declares them


def open_parquet(path: Path) -> "pyarrow.parquet.ParquetFile":
    """Opens a parquet file and reads its footer; raises DataError if that fails."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path}: parquet files need the package pyarrow, not installed; "
            "pip install -r requirements-parquet.txt"
        ) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own derive from these
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path}: cannot be read as parquet: {reason}") from error
    if file.metadata.num_rows > MOST_ROWS:
        raise DataError(
            f"{path}: declares {file.metadata.num_rows:,} rows; at most {MOST_ROWS:,} are read"
        )
    groups = range(file.metadata.num_row_groups)
    largest = max((file.metadata.row_group(n).total_byte_size for n in groups), default=0)
    if largest > MOST_GROUP:
        raise DataError(f"{path}: has a row group of {largest:,} bytes; write it with smaller ones")
    return file
