"""Item IDs as text: random (RID), sequential (SID) and collaborative (CID) indexing.

An ID is one word, ``1001`` or ``<CI3><CI17>`` (``item_1001`` where prompts are printed as OpenP5's, see
:mod:`.templates`), that the language model reads and writes. No two items share one, which is asserted, and none
tells anything of held-out interactions: an ID is made from the training histories alone. RecBole's own item numbers
would tell, since they follow the whole file, where the held-out item of a user who is its first taker stands right
after his training items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recbole_tokenrec.generative.clustering import cluster_codes
from recbole_tokenrec.histories import Histories

FIRST_NUMBER = 1001  # OpenP5's
INDEXINGS = ("rid", "sid", "cid")


class ItemIndex(NamedTuple):
    """``names`` (n_items,): the ID of each item, "" for the padding item 0; ``tokens``: new words they are made of."""

    names: list[str]
    tokens: list[str]


def appearance_order(histories: Histories, n_items: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Items 1 … n_items - 1 in two parts: those of training by first appearance, and the others.

    Histories are walked user by user, each in time order. OpenP5 lets the other items follow as the held-out pairs
    of the users have them; here they follow in a random order, which nobody's held-out item can be read from.
    """
    seen, first = np.unique(histories.items.numpy(), return_index=True)
    seen = seen[np.argsort(first)]
    rest = np.setdiff1d(np.arange(1, n_items), seen)
    return seen, np.random.default_rng(seed).permutation(rest)


def random_index(n_items: int, seed: int, prefix: str = "") -> ItemIndex:
    """RID: the numbers from 1001 on, shuffled."""
    order = 1 + np.random.default_rng(seed).permutation(n_items - 1)
    return _numbered(order, n_items, prefix)


def sequential_index(histories: Histories, n_items: int, seed: int, prefix: str = "") -> ItemIndex:
    """SID: the numbers from 1001 on in the order of :func:`appearance_order`: who is taken together is close."""
    return _numbered(np.concatenate(appearance_order(histories, n_items, seed)), n_items, prefix)


def collaborative_index(
    histories: Histories, n_items: int, seed: int, clusters: int, cluster_size: int, prefix: str = ""
) -> ItemIndex:
    """CID: the path of an item through a tree of spectral clusters, see :mod:`.clustering`."""
    seen, rest = appearance_order(histories, n_items, seed)
    codes = cluster_codes(histories, n_items, seen, rest, clusters, cluster_size, seed)
    names = ["" if not code else prefix + "".join(f"<CI{part}>" for part in code) for code in codes]
    parts = sorted({part for code in codes for part in code})
    return _unique(ItemIndex(names, [f"<CI{part}>" for part in parts]))


def build_index(kind: str, histories: Histories, n_items: int, config, prefix: str = "") -> ItemIndex:
    """The index that ``item_indexing`` names; CID reads ``cid_clusters`` and ``cid_cluster_size`` too.

    ``prefix`` stands before each ID.
    """
    seed = int(config["seed"])
    if kind == "rid":
        return random_index(n_items, seed, prefix)
    if kind == "sid":
        return sequential_index(histories, n_items, seed, prefix)
    return collaborative_index(
        histories, n_items, seed, config["cid_clusters"], config["cid_cluster_size"], prefix
    )


def _numbered(order: np.ndarray, n_items: int, prefix: str) -> ItemIndex:
    names = [""] * n_items
    for rank, item in enumerate(order.tolist()):
        names[item] = f"{prefix}{FIRST_NUMBER + rank}"
    return _unique(ItemIndex(names, []))


def _unique(index: ItemIndex) -> ItemIndex:
    if len(set(index.names)) != len(index.names) or "" in index.names[1:]:
        raise AssertionError("two items share an ID, or one has none")
    return index
