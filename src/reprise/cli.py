"""`reprise COMMAND`: what a person types beyond src/train.py and src/eval.py, on the project in the working directory.

Each command, in `reprise.commands`, imports what it needs when it is called, so that the help is quick, `doctor` works
where torch does not, and `review --post` needs the standard library alone.
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from inspect import cleandoc

import reprise.commands.care
import reprise.commands.judging
import reprise.commands.searching
import reprise.commands.settings
import reprise.commands.using  # noqa: F401  they enter themselves
from reprise.commands.registry import COMMANDS
from reprise.runtime.errors import UserError, one_line_errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code. A package that is not installed is an error of one line."""
    parser = ArgumentParser(
        prog="reprise",
        description="Judge and repair the project in the working directory. `reprise COMMAND --help` tells more.",
        epilog="`python src/train.py key=value` trains without the pipeline, `python src/eval.py` measures a model.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for run, its_arguments in COMMANDS:
        text = cleandoc(str(run.__doc__))
        sub = commands.add_parser(
            run.__name__, help=text.splitlines()[0], description=text, formatter_class=RawDescriptionHelpFormatter
        )
        sub.set_defaults(run=run)
        for names, settings in its_arguments:
            sub.add_argument(*names, **settings)
    with one_line_errors():
        options: Namespace = parser.parse_args(arguments)
        try:
            return int(options.run(options) or 0)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] in ("reprise", "project"):
                raise
            extra = {"serve": "serve", "sweep": "search"}.get(options.run.__name__, "train")
            raise UserError(f"{error}; run `pip install 'PATH/TO/CLONE[{extra}]'`") from None
