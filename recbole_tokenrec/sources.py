"""A digest of the code that makes numbers, so that what was trained by other code is never taken for today's.

The names of cached stages, of finished trainings and of experiments' records are hashes of what their numbers depend
on. The package's version alone would not do: it changes at a release, the code of a checkout at every commit. The
digest is of the modules' syntax trees without docstrings: a comment, a docstring or a line break changes nothing.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

_ROOT = Path(__file__).parent
# What decides a trained model's numbers. Not: reading trained models, commands, tables, and what only stores things.
MAKING_NUMBERS = (
    "collaborative", "compat.py", "generative", "graph.py", "histories.py", "llm", "models", "ranks.py",
    "recbole_models", "registry.py", "tokenizers", "training",
)  # fmt: skip


@functools.cache
def code_digest(root: Path = _ROOT) -> str:
    """Twelve hexadecimal digits; those of nothing where a package was installed without its sources."""
    digest = hashlib.sha256()
    for name in MAKING_NUMBERS:
        files = [root / name] if name.endswith(".py") else sorted((root / name).rglob("*.py"))
        for file in files:
            if file.is_file():
                digest.update(file.relative_to(root).as_posix().encode())
                digest.update(ast.dump(_without_docstrings(ast.parse(file.read_bytes()))).encode())
    return digest.hexdigest()[:12]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree
