"""What a user can state about a folder of images beyond its name. Imports nothing heavy."""

from dataclasses import dataclass

from pipeline.errors import ConfigError

LAYOUTS = ("domain/class", "class", "split/class", "domain/split/class", "split/domain/class")
ACCEPT = ("codes", "spelling", "same-name", "duplicates")
FOLDER = "folder"  # --class-names' word for: the names of the folders, as they are


@dataclass(frozen=True)
class Stated:
    """What the user states about the folder, beyond its name.

    layout  one of LAYOUTS;  class_names  a file, or FOLDER;  accept  some of ACCEPT
    """

    layout: str | None = None
    class_names: str | None = None
    accept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ConfigError for unknown words."""
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ConfigError(f"--layout {self.layout}: there are {', '.join(LAYOUTS)}")
        for word in self.accept:
            if word not in ACCEPT:
                raise ConfigError(f"--accept {word}: there are {', '.join(ACCEPT)}")
