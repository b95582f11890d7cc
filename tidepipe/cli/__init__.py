"""The `tidepipe` command: one file per subcommand."""
