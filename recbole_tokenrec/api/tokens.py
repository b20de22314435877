"""The ID tokens, for people to look at: a table, figures on how well they tell entities apart, and a picture.

``recbole-tokenrec tokens`` writes all three.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from recbole_tokenrec.api.export import tokenrec_scorer
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.tokenizers import code_statistics, entity_tokens
from recbole_tokenrec.tokenizers.id_tokens import ITEM_LETTER, USER_LETTER

KINDS = {"user": USER_LETTER, "item": ITEM_LETTER}


def token_table(recommender) -> pd.DataFrame:
    """One row for each user and item: ``kind``, ``id``, ``title``, ``tokens`` (one text), ``shared_with`` (how many
    others of its kind have the same tokens).

    Raises:
        ConfigError: the model has no ID tokens.
    """
    data = tokenrec_scorer(recommender, "tokens").data
    frames = []
    for kind in KINDS:
        names = data.users if kind == "user" else data.items
        codes = _codes(recommender, kind)
        _, group, size = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        frames.append(
            pd.DataFrame(
                {
                    "kind": kind,
                    "id": names[1:],
                    "title": data.titles[1:] if kind == "item" and data.titles else "",
                    "tokens": ["".join(entity_tokens(KINDS[kind], row)) for row in codes],
                    "shared_with": size[group.ravel()] - 1,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def token_report(recommender, neighbours: int = 5, examples: int = 20) -> dict:
    """Figures for users and for items.

    Returns:
        for ``user`` and ``item``: ``entities``, ``codebooks``, ``codebook_size``, ``unique_share``,
        ``codebook_use`` and ``perplexity`` of each codebook, ``collisions`` (groups of ids with the same tokens,
        largest first, at most ``examples``), ``tokens_shared_with_nearest`` and ``…_with_random`` (mean number of
        tokens that an entity shares with its ``neighbours`` nearest by cosine, and with others at random), and
        ``neighbours``: the ``examples`` most popular items (first users) with their nearest and what they share.
    """
    model, data = recommender.model, recommender.data
    report = {}
    for kind in KINDS:
        names = data.users if kind == "user" else data.items
        codes = torch.from_numpy(_codes(recommender, kind))
        vectors = F.normalize((model.user_vectors if kind == "user" else model.item_vectors)[1:].cpu(), dim=-1)
        nearest = _nearest(vectors, min(neighbours, len(vectors) - 1))
        shared = (codes[nearest] == codes.unsqueeze(1)).sum(dim=2)  # (n, neighbours)
        generator = torch.Generator().manual_seed(0)
        others = torch.randint(len(codes), nearest.shape, generator=generator)
        by_chance = (codes[others] == codes.unsqueeze(1)).sum(dim=2)[others != torch.arange(len(codes)).unsqueeze(1)]
        order = data.popularity[1:].argsort(descending=True) if kind == "item" else torch.arange(len(codes))
        report[kind] = {
            "entities": len(codes),
            "codebooks": codes.shape[1],
            "codebook_size": model.settings.mq_codebook_size,
            **code_statistics(torch.cat([codes[:1], codes]), model.settings.mq_codebook_size),
            "collisions": _collisions(codes.numpy(), names[1:], examples),
            "tokens_shared_with_nearest": float(shared.float().mean()),
            "tokens_shared_with_random": float(by_chance.float().mean()),
            "neighbours": [
                {
                    "id": names[row + 1],
                    "tokens": entity_tokens(KINDS[kind], codes[row]),
                    "nearest": [
                        {
                            "id": names[other + 1],
                            "cosine": round(float(vectors[row] @ vectors[other]), 4),
                            "shared": [t for t in entity_tokens(KINDS[kind], codes[other])
                                       if t in entity_tokens(KINDS[kind], codes[row])],
                        }
                        for other in nearest[row].tolist()
                    ],
                }
                for row in order[:examples].tolist()
            ],
        }  # fmt: skip
    return report


def _codes(recommender, kind: str) -> np.ndarray:
    """(n, K) of the entities, the padding left out."""
    model = tokenrec_scorer(recommender, "tokens").model
    return (model.user_codes if kind == "user" else model.item_codes)[1:].cpu().numpy()


def _nearest(vectors: torch.Tensor, number: int) -> torch.Tensor:
    """(n, number) nearest others by cosine, in blocks."""
    found = []
    for start in range(0, len(vectors), 1024):
        part = vectors[start : start + 1024] @ vectors.T
        part[torch.arange(len(part)), torch.arange(start, start + len(part))] = -torch.inf
        found.append(part.topk(number, dim=1).indices)
    return torch.cat(found)


def _collisions(codes: np.ndarray, names: list[str], most: int) -> list[list[str]]:
    _, group, size = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    group = group.ravel()
    largest = np.argsort(-size, kind="stable")[:most]
    return [[names[row] for row in np.flatnonzero(group == which)] for which in largest if size[which] > 1]


def picture(recommender):
    """A plotly figure: use of every codeword, and the entities in the plane, coloured by their first token."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = [f"{kind}s: {what}" for what in ("codeword use", "first token") for kind in KINDS]
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles)
    for column, kind in enumerate(KINDS, start=1):
        use, plane, colours, names = drawn(recommender, kind)
        books = [f"{KINDS[kind]}{book + 1}" for book in range(len(use))]
        text = "codebook %{y}, codeword %{x}: %{customdata} entities<extra></extra>"
        shades = {"colorscale": "Viridis", "showscale": False}
        heat = go.Heatmap(z=np.log1p(use), y=books, customdata=use, hovertemplate=text, **shades)
        figure.add_trace(heat, row=1, col=column)
        marker = {"color": colours, "colorscale": "Turbo", "size": 4}
        points = go.Scattergl(x=plane[:, 0], y=plane[:, 1], mode="markers", marker=marker, text=names, hoverinfo="text")
        figure.add_trace(points, row=2, col=column)
    figure.update_layout(
        showlegend=False, height=900, title=f"Codebooks of {recommender.config['dataset']}", template="plotly_white"
    )
    return figure


def draw_png(recommender, path) -> None:
    """The same picture by matplotlib (extra ``plot``).

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("the PNG needs: pip install 'recbole-tokenrec[plot]'") from error
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, kind in enumerate(KINDS):
        use, plane, colours, _ = drawn(recommender, kind)
        axes[0, column].imshow(np.log1p(use), aspect="auto", interpolation="nearest")
        axes[0, column].set(title=f"{kind}s: log(1 + use) of each codeword", xlabel="codeword", ylabel="codebook")
        axes[1, column].scatter(plane[:, 0], plane[:, 1], c=colours, cmap="turbo", s=4)
        axes[1, column].set(title=f"{kind}s in the plane, colour: first token")
    figure.savefig(path, dpi=120)


def drawn(recommender, kind: str):
    """Use (K, L) of the codewords; two principal components (n, 2); first codes (n,); names with their tokens."""
    model, data = recommender.model, recommender.data
    codes, size = _codes(recommender, kind), model.settings.mq_codebook_size
    use = np.stack([np.bincount(column, minlength=size) for column in codes.T])
    vectors = F.normalize((model.user_vectors if kind == "user" else model.item_vectors)[1:].cpu().float(), dim=-1)
    vectors = vectors - vectors.mean(dim=0)
    plane = vectors @ torch.linalg.eigh(vectors.T @ vectors)[1][:, -2:].flip(1)
    names = data.users[1:] if kind == "user" else [
        f"{item} {title}" for item, title in zip(data.items[1:], data.titles[1:] if data.titles else data.items[1:])
    ]
    names = [f"{name}<br>{''.join(entity_tokens(KINDS[kind], row))}" for name, row in zip(names, codes)]
    return use, plane.numpy(), codes[:, 0], names
