"""``recbole-tokenrec tokens`` and ``recbole-tokenrec export``: what a trained TokenRec is made of, as files."""

from __future__ import annotations

from pathlib import Path

from recbole_tokenrec.cli.common import no_more, open_model
from recbole_tokenrec.errors import CheckpointError, ConfigError


def add_parser(subparsers) -> None:
    tokens_parser = subparsers.add_parser(
        "tokens",
        help="ID tokens as a table, figures and a picture",
        description="Writes tokens.csv (entity, title, tokens), tokens.json (collisions, use and perplexity of the "
        "codebooks, neighbours that share tokens), codebooks.html and, with the extra plot, codebooks.png.",
        allow_abbrev=False,
    )
    tokens_parser.add_argument("--checkpoint", required=True, help="TokenRec's checkpoint or exported folder")
    tokens_parser.add_argument("--output_dir", default="tokens", help="(default: %(default)s)")
    tokens_parser.add_argument("--neighbours", type=int, default=5, help="of each entity (default: %(default)s)")
    tokens_parser.set_defaults(handler=tokens)
    export_parser = subparsers.add_parser(
        "export",
        help="a Hugging Face folder with everything in it",
        description="Language model, tokenizer and configuration in safetensors, ID-token map, item vectors, FAISS "
        "index. `--checkpoint DIR` of every command takes the folder back.",
        allow_abbrev=False,
    )
    export_parser.add_argument("--checkpoint", required=True, help="TokenRec's checkpoint")
    export_parser.add_argument("--to", required=True, metavar="DIR", help="a new or empty folder, or an older export")
    export_parser.set_defaults(handler=export)


def tokens(arguments, rest: list[str]) -> int:
    from recbole_tokenrec.api import tokens as module
    from recbole_tokenrec.pipeline import need_folder, write_json

    no_more(rest)
    if arguments.neighbours < 1:
        raise ConfigError(f"--neighbours: {arguments.neighbours} is not allowed; allowed: int in [1, inf)")
    _need_tokenrec(arguments)
    need_folder("--output_dir", arguments.output_dir)
    model = open_model(arguments)
    table, report = model.tokens(), module.token_report(model, arguments.neighbours)
    folder = Path(arguments.output_dir)
    table.to_csv(folder / "tokens.csv", index=False)
    write_json(folder / "tokens.json", report)
    module.picture(model).write_html(folder / "codebooks.html", include_plotlyjs=True)
    files = ["tokens.csv", "tokens.json", "codebooks.html"]
    try:
        module.draw_png(model, folder / "codebooks.png")
        files.append("codebooks.png")
    except ConfigError as error:
        print(f"note: {error}")
    for kind, figures in report.items():
        perplexity = sum(figures["perplexity"]) / len(figures["perplexity"])
        print(
            f"{figures['entities']} {kind}s, {figures['codebooks']} codebooks of {figures['codebook_size']}: "
            f"{100 * figures['unique_share']:.1f} % have tokens of their own, mean perplexity {perplexity:.1f}; "
            f"{figures['tokens_shared_with_nearest']:.2f} tokens in common with the nearest, "
            f"{figures['tokens_shared_with_random']:.2f} with anybody"
        )
    print(f"{folder}: {', '.join(files)}")
    return 0


def export(arguments, rest: list[str]) -> int:
    no_more(rest)
    _need_tokenrec(arguments)
    files = open_model(arguments).export(arguments.to)
    print(f"{arguments.to}: {', '.join(files)}")
    return 0


def _need_tokenrec(arguments) -> None:
    """Raise a CheckpointError for RecBole's checkpoints, before the data set that these need is looked for."""
    from recbole_tokenrec.api.loading import find
    from recbole_tokenrec.checkpoints import is_checkpoint

    path = find(arguments.checkpoint)
    if path.is_file() and not is_checkpoint(path):
        raise CheckpointError(f"{path}: no checkpoint of TokenRec's, or one that was cut short; no other has tokens")
