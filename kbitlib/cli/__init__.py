"""The command line, ``kbit``. Bad input ends in one sentence and exit code 2; a chapter that failed in exit code 1."""

from __future__ import annotations

from typing import Any

import click

from kbitlib.cli.bench import bench
from kbitlib.cli.checkpoints import dequantize_command, eval_command, formats, inspect_command, quantize_command
from kbitlib.cli.laws import fit_command, plan_command
from kbitlib.cli.runs import run, status


class Commands(click.Group):
    """Turns what the library refuses into one sentence and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        from kbitlib.runs.store import StoreBusy, StoreError

        try:
            return super().invoke(ctx)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        except (StoreBusy, StoreError) as error:
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:  # whoever reads has enough, as `head` does; click ends quietly
            raise
        except OSError as error:  # a full disk, or a folder that cannot be written
            raise click.ClickException(f"cannot use {error.filename or 'a file'}: {error.strerror or error}") from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kbit-lab")
def main() -> None:
    """A laboratory for k-bit inference scaling laws."""


for command in (
    run, status, formats, fit_command, plan_command, bench,
    quantize_command, dequantize_command, inspect_command, eval_command,
):  # fmt: skip
    main.add_command(command)
