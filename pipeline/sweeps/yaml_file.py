"""A YAML file as plain data, read with care; the only yaml importer."""

from pathlib import Path

import yaml

from pipeline.errors import ConfigError
from pipeline.plain_files import read_plain

LARGEST = 64 * 1024
"""Bytes: 2 s of PyYAML's time. The sweeps people share have a thousand."""
DEEPEST = 16
"""A sweep nests 4 deep; PyYAML takes 5 minutes over 100 kB of opening brackets."""


def read_yaml(file: Path) -> dict:
    """The mapping that a YAML file holds, read with safe_load.

    Aliases are refused (nine lines of them stand for a billion values) and so are keys given
    twice, of which YAML would keep the last. Raises ConfigError saying what is wrong and where.
    """
    try:
        content = read_plain(file, LARGEST)
    except ConfigError as error:
        raise ConfigError(f"--spec {error}; a sweep is a YAML file of some lines") from error
    try:
        text = content.decode("utf-8-sig")
        _refuse_events(text, file)
        _refuse_twice(yaml.compose(text, yaml.SafeLoader), file)
        found = yaml.safe_load(text)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"--spec {file}: is not valid YAML{line}: {error.problem}") from error
    # A value such as !!int '' or 2026-99-99 fails inside PyYAML's constructors with whatever they
    # happen to raise: LookupError, AttributeError, ValueError.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--spec {file}: is not valid YAML: {reason}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(
            f"--spec {file}: holds a {type(found).__name__}; a sweep is `method: grid` and "
            "`parameters:` with a name a line under it"
        )
    return found


def _refuse_events(text: str, file: Path) -> None:
    deep = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(
                f"--spec {file}: line {line} uses the alias *{event.anchor}; write the values out"
            )
        opens = isinstance(event, yaml.CollectionStartEvent)
        deep += opens - isinstance(event, yaml.CollectionEndEvent)
        if deep > DEEPEST:
            raise ConfigError(f"--spec {file}: line {line} nests deeper than {DEEPEST} levels")


def _refuse_twice(node: yaml.Node | None, file: Path) -> None:
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_twice(child, file)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, child in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"--spec {file}: line {line} gives {key.value} a second time")
            seen.add(key.value)
        _refuse_twice(child, file)
