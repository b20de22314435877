"""``recbole-tokenrec serve``: a trained model over HTTP, with a page to look at (the extra ``serve``)."""

from __future__ import annotations

from recbole_tokenrec.cli.common import no_more, open_model
from recbole_tokenrec.errors import ConfigError


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="recommendations over HTTP, with a page to look at",
        description="GET /health, /recommend, /items/{id}/tokens, /users/{id}; POST /recommend; a page at /. "
        "It is an example for a trusted network: there is no authentication.",
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, or a folder that `export` wrote")
    parser.add_argument("--data_path", help="folder of the data set, if a RecBole checkpoint's data has moved")
    parser.add_argument("--host", default="127.0.0.1", help="(default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for each request (default: %(default)s)")
    parser.set_defaults(handler=serve)


def serve(arguments, rest: list[str]) -> int:
    no_more(rest)
    if not 0 <= arguments.port < 65536:
        raise ConfigError(f"--port: {arguments.port} is not allowed; allowed: int in [0, 65535]")
    if arguments.threads < 1:
        raise ConfigError(f"--threads: {arguments.threads} is not allowed; allowed: int in [1, inf)")
    try:
        from recbole_tokenrec.serving.app import run_server
    except ImportError as error:
        raise ConfigError(f"serve needs: pip install 'recbole-tokenrec[serve]' ({error})") from error
    return run_server(open_model(arguments), arguments.host, arguments.port, arguments.threads)
