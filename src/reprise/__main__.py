"""`python -m reprise SUBCOMMAND`."""

from reprise.cli import main

raise SystemExit(main())
