"""What TokenRec costs: each module is a script, ``python -m benchmarks.<name>`` from the repository's root.

See ``benchmarks/README.md``.
"""
