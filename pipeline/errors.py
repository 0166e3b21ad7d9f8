"""Every error that a user of the pipeline can cause, with the exit code it ends a command with.

    Exception
    |-- ConfigError        1  invalid setting, or one that does not fit the cache, run or sweep
    |   |-- ConflictError     two settings, each valid, that cannot be combined
    |   |-- RowsError         too few rows for what the settings ask of them
    |   `-- DamagedDone       a run's `done` file is damaged, so the others cannot be checked
    |-- DataError          6  images or a data set: missing, unreadable, not what was asked for
    |   |-- UnclearLayout     folders whose levels must be stated
    |   |   `-- TooDeep       more levels than any layout has
    |   `-- Doubtful          folders that are read once the user has stated what is meant
    |-- WeightsError       7  CLIP weights: missing, unreadable, not CLIP
    `-- Interrupted  130, 143 stopped by SIGINT or SIGTERM, with what was done written

The two packages below have their own: cache.table has CacheError (4) and StaleCache (3),
kernels.backends has BackendUnavailable (5).
"""


class ConfigError(Exception):
    """An invalid setting, or one that does not fit the cache, run or sweep it is used on."""

    exit_code = 1


class ConflictError(ConfigError):
    """Two settings, each valid, that cannot be combined."""


class RowsError(ConfigError):
    """Too few rows for what the settings ask of them."""


class DamagedDone(ConfigError):
    """`done` itself is damaged, so that the other files cannot be checked against it."""


class DataError(Exception):
    """A folder of images or a download that is not what was asked for."""

    exit_code = 6


class UnclearLayout(DataError):
    """A tree whose levels are ambiguous unless stated."""


class TooDeep(UnclearLayout):
    """A tree with more levels than any layout has."""


class Doubtful(DataError):
    """A folder that is ambiguous until the user states what is meant.

    words  the options that state it, as on a command line
    """

    def __init__(self, message: str, words: str) -> None:
        super().__init__(message)
        self.words = words


class WeightsError(Exception):
    """Weights that are missing, cannot be read, or are not those of an OpenAI CLIP."""

    exit_code = 7

    def __init__(self, message: str) -> None:
        # The names come from a file that is not trusted; they could contain terminal escapes.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class Interrupted(Exception):
    """A signal asked to stop; finished work is saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number, self.exit_code = number, 128 + number
