"""The subcommands of `reprise` by name, with their arguments, and the project that they work on."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reprise.repo.project import Project

Command = Callable[[Namespace], int | None]
Argument = tuple[tuple[str, ...], dict[str, Any]]
COMMANDS: list[tuple[Command, tuple[Argument, ...]]] = []


def argument(*names: str, **options: Any) -> Argument:
    """Return names and options of an argument, for `ArgumentParser.add_argument`."""
    return names, options


OVERRIDES = argument("overrides", nargs="*", metavar="key=value", help="a parameter of params.yaml and its new value")


def command(*arguments: Argument) -> Callable[[Command], Command]:
    """Make a function a subcommand: its docstring is the help, what it returns the exit code."""

    def add(run: Command) -> Command:
        COMMANDS.append((run, arguments))
        return run

    return add


def here(check: bool = True) -> Project:
    """Return the project that the working directory lies in; say so if a killed DVC left it in need of `doctor`."""
    from reprise.repo.doctor import say_if_needed

    project = Project.find(Path.cwd())
    if check:
        say_if_needed(project)
    return project
