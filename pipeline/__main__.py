"""python -m pipeline: the commands of run.sh, on every system."""

from pipeline.cli import cli

if __name__ == "__main__":
    cli(prog_name="fedclip")
