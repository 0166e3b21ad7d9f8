"""What a user can state about an image folder beyond its name. Imports nothing heavy."""

from dataclasses import dataclass

from pipeline.errors import ConfigError

LAYOUTS = ("domain/class", "class", "split/class", "domain/split/class", "split/domain/class")
ACCEPT = ("codes", "spelling", "same-name", "duplicates")
FOLDER = "folder"  # of --class-names: the names of the folders, unchanged


@dataclass(frozen=True)
class Stated:
    """What the user states about the folder beyond its name.

    layout  one of LAYOUTS;  class_names  a file, or FOLDER;  accept  some of ACCEPT
    """

    layout: str | None = None
    class_names: str | None = None
    accept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ConfigError for unknown words."""
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ConfigError(f"--layout {self.layout}: choose from {', '.join(LAYOUTS)}")
        for word in self.accept:
            if word not in ACCEPT:
                raise ConfigError(f"--accept {word}: choose from {', '.join(ACCEPT)}")
