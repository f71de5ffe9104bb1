"""The command `mlops`: a verb of the loop each. Tables for people, `--json` for machines."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
import typer.core

from mlops.errors import MlopsError
from mlops.verbs import COMMANDS, GROUPS


class _Verbs(typer.core.TyperGroup):
    """Verbs of which some have two words: `logs export` stands beside `logs`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        two = " ".join(args[:2])
        return super().resolve_command(ctx, [two, *args[2:]] if two in self.commands else args)


app = typer.Typer(
    name="mlops",
    cls=_Verbs,
    help="From a table to a trained, tracked, packaged, served and monitored model.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)

for verb, command in COMMANDS.items():
    app.command(verb)(command)
for noun, group in GROUPS.items():
    app.add_typer(group, name=noun)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; end with 0, or with one line on standard error and another code."""
    try:
        try:
            app(args=arguments)
        finally:
            sys.stdout.flush()  # here, and not as the interpreter ends, when nobody can catch it
    except MlopsError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader has seen enough (`| head`). What is left in the buffer must not be tried again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # A full disk, a missing permission: the user's to mend, and said in one line.
        where = f": {error.filename}" if error.filename else ""
        _complain(f"{error.strerror or error}{where}")
        sys.exit(1)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("mlops"):
            raise
        # An image that serves can do without what training needs.
        _complain(
            f"this needs {error.name}, which is not installed here — "
            "use the environment that trains: make up, or the image's stage `training`"
        )
        sys.exit(1)


def _complain(line: str) -> None:
    print(f"mlops: {line}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
