"""python -m pipeline: the commands of run.sh, on every system."""

import sys

from pipeline.missing import refuse_lost_folder, refuse_missing_package, refuse_old_python

if __name__ == "__main__":
    refuse_old_python()
    from pipeline.terminal import exit_code, guard_process

    guard_process()
    refuse_lost_folder()
    try:
        from pipeline.cli.app import cli
    except ModuleNotFoundError as error:
        refuse_missing_package(error)
        raise
    try:
        cli(prog_name="./run.sh")
    except SystemExit as end:
        sys.exit(exit_code(end.code))
