"""python -m pipeline: the commands of run.sh, on every system."""

from pipeline.missing import refuse_missing_package, refuse_old_python

if __name__ == "__main__":
    refuse_old_python()
    try:
        from pipeline.cli import cli
    except ModuleNotFoundError as error:
        refuse_missing_package(error)
        raise
    cli(prog_name="fedclip")
