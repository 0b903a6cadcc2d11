"""The subcommands of `reprise`, by what they are for."""
