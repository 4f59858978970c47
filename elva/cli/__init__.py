"""The `elva` command, one file per subcommand."""
