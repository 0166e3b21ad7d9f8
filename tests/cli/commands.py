"""Commands called in this process, as people type them: their results, or one line of refusal."""

import re

from click.testing import CliRunner, Result

from pipeline.cli.app import cli


def call(*words: object, code: int = 0) -> Result:
    """What a command printed, which ends with this exit code."""
    result = CliRunner().invoke(cli, [str(word) for word in words])
    if result.exit_code != code:
        raise AssertionError(f"{words}: {result.exit_code}\n{result.output}") from result.exception
    return result


def refused(*words: object, code: int, match: str) -> None:
    """Holds a command to end with this exit code and one line that matches."""
    result = call(*words, code=code)
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: ") and re.search(match, lines[-1]), result.stderr
    assert "Traceback" not in result.stderr
