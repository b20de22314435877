"""Toy models, on one thread."""

import pytest


@pytest.fixture(autouse=True)
def toy_models(one_thread):
    """All tests here."""
