"""The command ``recbole-tokenrec``: one module per subcommand, each with ``add_parser(subparsers)``."""
