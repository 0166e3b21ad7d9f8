"""Base classes of commands: sections and meanings of choices in --help, -q and -v."""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.types import OptionHelpExtra

LAST = "Output"
"""The section of --quiet, --verbose and --help in commands with sections."""
PLAIN = "Options"
"""The only section of commands whose options name none."""
Function = Callable[..., Any]


class Option(click.Option):
    """An option with its place in --help.

    section   heading; None: the last one
    under     second heading, as "With --method krum"; "" for none
    meanings  the meaning of each choice, shown on a line of its own
    note      a description of the default, if the command computes it
    """

    def __init__(
        self,
        *names: Any,
        section: str | None = None,
        under: str = "",
        meanings: Mapping[str, str] | None = None,
        note: str | None = None,
        **settings: Any,
    ) -> None:
        if meanings:
            settings.setdefault("metavar", "NAME")
        super().__init__(*names, **settings)
        self.section, self.under, self.meanings, self.note = section, under, meanings or {}, note

    def help_rows(self, ctx: click.Context) -> list[tuple[str, str]]:
        """The rows of --help: the option's, and one for each choice with a meaning."""
        record = self.get_help_record(ctx)
        if record is None:
            return []
        return [record, *((f"    {choice}", meaning) for choice, meaning in self.meanings.items())]

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """As click's, with the described default."""
        extra = super().get_help_extra(ctx)
        return {**extra, "default": self.note} if self.note else extra

    def make_metavar(self, ctx: click.Context) -> str:
        """As click's, without RANGE: the bounds follow the help."""
        return super().make_metavar(ctx).removesuffix(" RANGE")


def option(*names: str, **settings: Any) -> Function:
    """As click.option, for an Option."""
    return click.option(*names, cls=Option, **settings)


class Command(click.Command):
    """A command with --quiet and --verbose, whose --help has sections.

    Options may be spelled with underscores and --test-envs takes several numbers, as in the
    released code's `--test_envs 0 1 --wk_iters 2`, which click cannot parse.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.params += [
            Option(
                [short, long, "log_level"], flag_value=level, type=int, help=help,
                expose_value=False, callback=_keep_level,
            )
            for short, long, level, help in (
                ("-q", "--quiet", logging.WARNING, "Show only warnings and errors, no progress."),
                ("-v", "--verbose", logging.DEBUG, "Show details of what is done."),
            )
        ]  # fmt: skip

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Translates the released spellings to click's before parsing."""
        return super().parse_args(ctx, spelled_for_click(args))

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command, showing its log on stderr."""
        from pipeline.terminal import log_to

        with log_to("stderr", ctx.meta.get(LEVEL, logging.INFO)):
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options by section, in the order in which sections first appear."""
        for title, options in _by_section(self.get_params(ctx)).items():
            with formatter.section(title):
                for under, group in itertools.groupby(
                    options, lambda one: getattr(one, "under", "")
                ):
                    rows = [row for one in group for row in _rows(one, ctx)]
                    if under:
                        with formatter.section(under):
                            formatter.width -= formatter.indent_increment  # click forgets it
                            formatter.write_dl(rows)
                            formatter.width += formatter.indent_increment
                    elif rows:
                        formatter.write_dl(rows)


LEVEL = "pipeline.log_level"


class Group(click.Group):
    """A group whose commands are Commands."""

    command_class = Command


def _keep_level(ctx: click.Context, _: click.Parameter, level: int | None) -> None:
    if level is not None:
        ctx.meta[LEVEL] = level


def _rows(option: click.Parameter, ctx: click.Context) -> list[tuple[str, str]]:
    if isinstance(option, Option):
        return option.help_rows(ctx)
    record = option.get_help_record(ctx)
    return [record] if record else []


def _by_section(params: Sequence[click.Parameter]) -> dict[str, list[click.Parameter]]:
    options = [one for one in params if not isinstance(one, click.Argument)]
    named = [getattr(one, "section", None) for one in options]
    rest = LAST if any(named) else PLAIN
    found: dict[str, list[click.Parameter]] = {}
    for title, one in zip(named, options, strict=True):
        found.setdefault(title or rest, []).append(one)
    found[rest] = found.pop(rest)  # last
    return {
        title: sorted(own, key=lambda one: getattr(one, "under", "") != "")
        for title, own in found.items()
    }


def spelled_for_click(args: Sequence[str]) -> list[str]:
    """--test_envs 0 1 -> --test-envs 0 --test-envs 1; --wk_iters -> --wk-iters.

    Values do not change, nor do arguments after --, which belong to another program.
    """
    spelled: list[str] = []
    many = False
    for at, word in enumerate(args):
        if word == "--":
            return [*spelled, *args[at:]]
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = name.replace("_", "-") + equals + value
            many = word == "--test-envs"
        elif many and word.lstrip("-").isdigit():
            if spelled[-1] != "--test-envs":  # from the second number on
                spelled.append("--test-envs")
        else:
            many = False
        spelled.append(word)
    return spelled


def together(*options: Function) -> Function:
    """Combines click decorators, in the order in which --help shows them."""

    def decorate(command: Function) -> Function:
        for each in reversed(options):
            command = each(command)
        return command

    return decorate


class NamedPath(click.Path):
    """A path that is not "", which pathlib takes for this folder: it is often an unset variable."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """The pathlib.Path of a value that names something."""
        if value == "":
            self.fail("an empty path; is a shell variable unset?", param, ctx)
        return super().convert(value, param, ctx)


PATH = NamedPath(path_type=Path)
