"""How federate's words are read: settings, the released spellings, and what is held out."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.datasets.stated import ACCEPT, LAYOUTS
from pipeline.encoder.towers import ACTIVATIONS, Towers
from pipeline.errors import ConfigError
from pipeline.settings import PRESETS, RunConfig

ALIASES = {"rounds": "--iters", "local_epochs": "--wk-iters", "split": "--datapercent"}
"""What the released code calls a setting."""
Command = Callable[..., Any]


def config_options(command: Callable) -> Callable:
    """An option for each setting of RunConfig but held_out, and --preset for many at once.

    What is not named stays None, so that a preset's value or RunConfig's own default holds.
    """
    for each in reversed(dataclasses.fields(RunConfig)):
        if not each.metadata:
            continue
        names = ["--" + each.name.replace("_", "-")]
        names += [ALIASES[each.name]] if each.name in ALIASES else []
        choices = each.metadata.get("choices")
        command = click.option(
            *names,
            each.name,
            type=click.Choice(choices) if choices else each.type,
            show_default=f"{each.default:g}" if not choices else each.default,
            help=each.metadata["help"],
        )(command)
    return click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        default="released",
        show_default=True,
        help="Settings to start from; options named beside it win.",
    )(command)


def given_settings(preset: str, settings: dict) -> dict:
    """What RunConfig is made from: the preset's settings, then those that were named."""
    named = {name: value for name, value in settings.items() if value is not None}
    return {**PRESETS[preset], **named}


class NamedPath(click.Path):
    """A path that is not "": pathlib takes that for this folder, a shell leaves it for a typo."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """The pathlib.Path of a value that names something."""
        if value == "":
            self.fail("an empty path; was a variable of the shell not set?", param, ctx)
        return super().convert(value, param, ctx)


PATH = NamedPath(path_type=Path)


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several of click's decorators as one, in the order in which --help shows them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class HeadCounts(click.ParamType):
    """IMAGE[,TEXT]: attention heads of the image and of the text tower."""

    name = "image[,text]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int | None]:
        """(12, 8) of "12,8"; (12, None) of "12"."""
        parts = [part.strip() for part in str(value).split(",")]
        if len(parts) > 2 or not all(p.isascii() and p.isdigit() and 0 < int(p[:9]) for p in parts):
            self.fail(f"{value!r}: give the heads of the image tower, or both: 12,8", param, ctx)
        return int(parts[0][:9]), int(parts[1][:9]) if len(parts) == 2 else None


def tower_options(command: Command) -> Command:
    """--heads and --activation, which come to the command as `towers`."""

    @functools.wraps(command)
    def with_towers(*args: Any, heads: Any, activation: str | None, **others: Any) -> Any:
        image, text = heads or (None, None)
        return command(*args, towers=Towers(image, text, activation), **others)

    return together(
        click.option(
            "--heads",
            type=HeadCounts(),
            metavar="IMAGE[,TEXT]",
            help="Attention heads of the model in a file, where they are not 64 wide.",
        ),
        click.option(
            "--activation",
            type=click.Choice(ACTIVATIONS),
            help="Activation of the model in a file. [default: by config.json beside it, else"
            " quickgelu]",
        ),
    )(with_towers)


layout_options = together(
    click.option(
        "--layout",
        type=click.Choice(LAYOUTS),
        help="What the levels of FOLDER are. [default: a guess, refused where it is dangerous]",
    ),
    click.option(
        "--class-names",
        metavar="FILE|folder",
        help="A file that names the class folders; or folder: their own names are meant.",
    ),
    click.option(
        "--accept",
        multiple=True,
        type=click.Choice(ACCEPT),
        help="An oddity that is meant; may be given several times.",
    ),
)
cache_options = together(
    click.argument("cache", required=False, type=PATH),
    click.option("--dataset", help="Find the cache by its data set (extract it when missing)."),
    click.option(
        "--model", "--net", help="... and by its model. [default: ViT-B/32; demo for demo]"
    ),
    tower_options,
    click.option("--root", "--root-dir", type=PATH, help="Where data sets lie."),
)
"""Which cache is trained on: its file, or the words that find it (cli_shared.find_cache)."""

fold_options = together(
    click.option(
        "--held-out",
        multiple=True,
        metavar="DOMAIN|all|none",
        help="Domain no client trains on; a,b holds both out of one training; all: each in its "
        "turn. [default: all]",
    ),
    click.option(
        "--test-envs",
        multiple=True,
        type=int,
        metavar="INT...",
        help="The released spelling: numbers of domains, in sorted order, held out of one "
        "training.",
    ),
)
"""What is held out: choose_held_out's two arguments."""

where_options = together(
    click.option("--device", default="auto", type=click.Choice(["auto", "cuda", "cpu"])),
    click.option("--backend", default="auto", show_default=True, help="Kernels: auto, torch."),
)
"""What the training runs on."""


class ReleasedSpellings(click.Command):
    """A command whose options may be spelled with underscores and whose --test-envs takes many.

    The released code's argparse reads `--test_envs 0 1 --wk_iters 2`; click would not.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts the released spellings into click's before it parses."""
        return super().parse_args(ctx, spelled_for_click(args))


def spelled_for_click(args: Sequence[str]) -> list[str]:
    """--test_envs 0 1 -> --test-envs 0 --test-envs 1; --wk_iters -> --wk-iters; values stay."""
    spelled: list[str] = []
    many = False
    for word in args:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = name.replace("_", "-") + equals + value
            many = word == "--test-envs"
        elif many and word.lstrip("-").isdigit():
            if spelled[-1] != "--test-envs":  # the second number and on
                spelled.append("--test-envs")
        else:
            many = False
        spelled.append(word)
    return spelled


def choose_held_out(
    table, held_out: Sequence[str], test_envs: Sequence[int]
) -> tuple[tuple[str, ...], ...]:
    """The folds to train: one tuple of held-out domain names for each.

    Nothing named: every domain in its turn, or none where there is one domain only. `all` and
    `none` say so; "a,b" holds two out of one training, naming the option twice trains twice.
    Raises ConfigError or CacheError for what the table does not have.
    """
    from cache.table import domain_index

    names = table.domain_names
    if held_out and test_envs:
        raise ConfigError("--held-out and --test-envs say the same thing; give one of the two")
    if test_envs:
        wrong = [number for number in test_envs if not 0 <= number < len(names)]
        if wrong:
            listed = ", ".join(f"{i} {name}" for i, name in enumerate(names))
            raise ConfigError(f"--test-envs {wrong[0]}: {table.source} has the domains {listed}")
        return (tuple(dict.fromkeys(names[number] for number in test_envs)),)
    if not held_out:
        held_out = ("all",) if len(names) > 1 else ("none",)
    folds: list[tuple[str, ...]] = []
    for choice in held_out:
        if choice in names:
            folds.append((choice,))
        elif choice == "all":
            folds += [(name,) for name in names]
        elif choice == "none":
            folds.append(())
        else:
            parts = [part.strip() for part in choice.split(",")]
            folds.append(tuple(names[domain_index(table, part)] for part in dict.fromkeys(parts)))
    return tuple(dict.fromkeys(folds))
