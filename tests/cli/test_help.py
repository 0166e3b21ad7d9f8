"""What --help shows: every option once, in its section, in sentences."""

import dataclasses
import re

import click
import pytest
from click.testing import CliRunner

from pipeline.cli.app import cli
from pipeline.cli.command import Command, Option
from pipeline.cli.options import OTHERS, arranged, under
from pipeline.settings import RunConfig
from pipeline.settings_used import ways_of
from tests.cli.commands import call


def commands(group: click.Group = cli, names: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*names, name))
        else:
            yield pytest.param((*names, name), command, id=" ".join((*names, name)))


EVERY = pytest.mark.parametrize(("words", "command"), list(commands()))
TRAINING = pytest.mark.parametrize(
    "words", [["federate"], ["sweep"], ["flower", "run"]], ids=" ".join
)


def shown(*words: str) -> str:
    return call(*words, "--help").output


@EVERY
def test_every_option_is_shown_once_and_explained_in_a_sentence(words, command):
    assert isinstance(command, Command)
    text = shown(*words)
    for option in command.get_params(click.Context(command)):
        if isinstance(option, click.Argument):
            continue
        assert re.search(r"[A-Z`].*[.)]$", option.help or ""), option.opts
        for spelling in option.opts:
            pattern = rf"^ +(?:-\S+(?: \S+)?, )*{re.escape(spelling)}(?=[ ,\n])"
            assert len(re.findall(pattern, text, re.MULTILINE)) == 1, spelling
    assert not re.search(r"\[default: *[(\[]|\]\s+\[(?:default|x)", text)
    assert all(
        len(line) <= 80 or "./run.sh" in line or line.startswith("  -")
        for line in text.splitlines()
    )


@EVERY
def test_every_command_can_be_quiet_and_verbose(words, command):
    assert {"-q", "--quiet", "-v", "--verbose"} <= {n for each in command.params for n in each.opts}


def test_every_setting_has_one_section_and_every_choice_a_meaning():
    names = [each.name for _, _, each in arranged()]
    settings = [each for each in dataclasses.fields(RunConfig) if each.metadata]
    assert sorted(names) == sorted(each.name for each in settings)
    assert not [each.name for title, _, each in arranged() if title == OTHERS]
    for each in settings:
        for choice, meaning in each.metadata.get("meanings", {}).items():
            assert meaning.endswith("."), (each.name, choice)


def test_a_heading_names_those_that_use_the_setting():
    assert under("mu", "method") == "With --method fedprox or ditto"
    assert under("momentum", "optimizer") == "With --optimizer sgd"
    for _, heading, each in arranged():
        if heading:
            chooser, *choices = re.findall(r"--(\w+)|([\w-]+)(?=,| or|$)", heading)
            (way,) = [way for way in ways_of(each.name) if chooser[0] in way]
            assert [choice for _, choice in choices] == list(way[chooser[0]])


@TRAINING
def test_settings_stand_below_their_headings(words):
    text = shown(*words)
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert titles[-1] == "Output" and len(set(titles)) == len(titles)
    own = text.split("With --method krum:")[1].split("\n\n")[0]
    assert "--byzantine" in own and "--keep" in own and "--trim" not in own
    assert re.search(r"^ +trimmed-mean +Mean of each coordinate", text, re.MULTILINE)


def test_an_option_without_a_section_of_its_own_stands_in_the_last():
    @click.command(cls=Command)
    @click.option("--plain", help="Plain.")
    @click.option("--own", cls=Option, section="First", help="Own.", note="so")
    def odd() -> None:
        """Nothing."""

    text = CliRunner().invoke(odd, ["--help"]).output
    assert re.search(r"First:\n  --own TEXT  Own\.  \[default: so\]\n\nOutput:\n  --plain", text)
