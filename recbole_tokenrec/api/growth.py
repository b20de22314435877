"""New users, items and interactions in a trained TokenRec: Fig. 3 of the paper.

Only the collaborative side learns of what is new; tokenizers and language model stay as they are, so that a token goes
on meaning what it meant.

*Users* are folded in: their vector is what the frozen item tables propagate to them (Section 2.3.1 with the user's own
embedding left at 0), then the frozen user tokenizer.

*Items* have no table row to propagate from. What places them is who took them: m_j, the mean direction of j's users as
their other items make them. Old items have an m_j too and a trained place q_j, so a regression of q on m over all old
items says where an item with these users lies (and likewise what it adds to its users' vectors). A plain mean of users
would lie where users lie, closer to everybody than any trained item.

An item nobody else's history supports cannot be placed and is left out, by name.
"""

from __future__ import annotations

import copy

import torch
from torch.nn import functional as F

from recbole_tokenrec.api.scorers import TokenRecScorer, fold_in, twin
from recbole_tokenrec.collaborative.ensemble import CollaborativeEnsemble, members_of
from recbole_tokenrec.collaborative.representations import build_collaborative
from recbole_tokenrec.errors import ConfigError, DataError
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.models.tokenrec import COLLABORATIVE, LLM
from recbole_tokenrec.snapshot import DataSnapshot
from recbole_tokenrec.training.adamw import adamw
from recbole_tokenrec.training.loaders import generator_for
from recbole_tokenrec.training.stages import CollaborativeStage

_RIDGE = 1e-2  # of the mean spread: what a small catalogue cannot tell
_MOST_PAIRS = 500_000  # (user, item) pairs that the regression looks at
_PAIRS_AT_ONCE = 65_536
_FINE_TUNE_RATE = 0.1  # of cf_learning_rate: the tables are trained already


def grown(scorer: TokenRecScorer, config, users: list[str], items: list[str], epochs: int = 0):
    """A scorer that knows later interactions too, and a report; ``scorer`` stays as it is.

    Args:
        config: the model's RecBole ``Config``.
        users, items: raw ids of the interactions, in time order.
        epochs: of further training of the collaborative stage; 0 for fold-in alone.

    Returns:
        the new scorer; ``{"interactions", "new_users", "new_items", "updated_users", "left_out"}`` and, after
        training, ``"drift"``.

    Raises:
        DataError: no interactions, none that can be placed, or an id that is no id.
        ConfigError: the collaborative model has no fold-in, or ``epochs`` needs a loss that it does not have.
    """
    model = scorer.model
    _check(model, users, items, epochs)
    kept, left_out = _placeable(scorer.data, users, items)
    if not kept:
        raise DataError("interactions: every item is new, and nobody who took one also took a known one")
    users, items = [users[row] for row in kept], [items[row] for row in kept]
    old, data = scorer.data, scorer.data.extended(users, items)
    touched = torch.tensor(sorted({data.user_numbers[user] for user in users}))

    with torch.no_grad(), torch.random.fork_rng():
        collaborative = build_collaborative(model.settings, config, data).to(model.item_vectors.device)
        parts = []
        for member, fresh in zip(members_of(model.collaborative), members_of(collaborative)):
            placed, inputs = _placed_items(model, member, old, data)
            _extend(member, fresh, placed, inputs)
            parts.append(placed)
        vectors = parts[0]
        if isinstance(collaborative, CollaborativeEnsemble):
            collaborative.mix.load_state_dict(model.collaborative.mix.state_dict())
            vectors = collaborative.joined(parts)
    llm = model.llm
    if llm.item_offset is not None:  # new items are retrieved where they were placed
        offsets = _with_rows(llm.item_offset.weight.detach(), data.item_num)
        llm = twin(llm, item_offset=torch.nn.Embedding.from_pretrained(offsets, freeze=False))
    other = twin(
        model,
        llm=llm,
        collaborative=collaborative,
        histories=data.histories,
        evaluation_histories=data.histories,
        user_vectors=_with_rows(model.user_vectors, data.user_num),
        item_vectors=torch.cat([model.item_vectors, vectors]),
        user_codes=_with_rows(model.user_codes, data.user_num),
        item_codes=_with_rows(model.item_codes, data.item_num),
        n_users=data.user_num,
        n_items=data.item_num,
        _encoded_users=None,
    )
    report = {
        "interactions": len(users),
        "new_users": data.user_num - old.user_num,
        "new_items": data.item_num - old.item_num,
        "updated_users": int((touched < old.user_num).sum()),
        "left_out": left_out,
    }
    index = scorer.index
    if epochs:
        _train_on(other, epochs)
        other.refresh_representations()
        before, after = model.item_vectors[1:], other.item_vectors[1 : old.item_num]
        report["drift"] = float(F.cosine_similarity(before, after).mean())
        index = scorer.index_of(other.retrieval_vectors.detach())
    elif len(vectors):
        index = index.extended(vectors)
    with torch.no_grad():
        other.eval()
        if data.item_num > old.item_num:
            new = other.tokenizer_inputs(other.item_vectors[old.item_num :])
            other.item_codes[old.item_num :] = other.item_tokenizer.encode_all(new)
        folded = fold_in(collaborative, _histories_of(data.histories, touched))
        other.user_vectors[touched] = folded
        other.user_codes[touched] = other.user_tokenizer.encode_all(other.tokenizer_inputs(folded))
    return TokenRecScorer(other, data, index, scorer.index_of), report


def _check(model, users: list[str], items: list[str], epochs: int) -> None:
    if not hasattr(model.collaborative, "fold_in"):
        raise ConfigError(
            f"update: cf_model {model.settings.cf_model} has no fold-in, its users are rows of a trained table; "
            "allowed: LightGCN"
        )
    if epochs and model.settings.cf_loss != "softmax_cosine":
        raise ConfigError("fine_tune: needs a model trained with cf_loss: softmax_cosine; this one has cf_loss: own")
    if not users:
        raise DataError("interactions: there are none")
    if any(not token or "\n" in token or "\t" in token for token in (*users, *items)):
        raise DataError("interactions: an id is empty or holds a line break or a tab")


def _placeable(data: DataSnapshot, users: list[str], items: list[str]) -> tuple[list[int], list[str]]:
    """Rows of interactions whose item is known or is supported by a user with another placed item; the other items."""
    counts = data.histories.counts()
    anchored = {user for user in set(users) if counts[data.user_numbers.get(user, 0)]}
    placed = {item for item in set(items) if item in data.item_numbers}
    while True:
        anchored |= {user for user, item in zip(users, items) if item in placed}
        more = {item for user, item in zip(users, items) if user in anchored} - placed
        if not more:
            break
        placed |= more
    kept = [row for row, item in enumerate(items) if item in placed]
    return kept, [item for item in dict.fromkeys(items) if item not in placed]


def _placed_items(
    model, collaborative, old: DataSnapshot, data: DataSnapshot
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the new items lie for a collaborative model (m, d), and what they add to its users' vectors (m, d)."""
    device = model.item_vectors.device
    inputs = collaborative.item_inputs()
    number = data.item_num - old.item_num
    if not number:
        return inputs[:0], inputs[:0]
    item_vectors = collaborative.forward()[1]
    means, support, squares = _mean_users(collaborative, inputs, old.histories, old.item_num, leave_one_out=True)
    known = support > 0
    degree = torch.bincount(old.histories.items, minlength=old.item_num).clamp_min(1).sqrt().unsqueeze(1).to(device)
    targets = torch.cat([model.tokenizer_inputs(item_vectors), inputs * degree], dim=1)
    guess = _Regression(means[known], support[known], squares, targets[known])

    dim = inputs.shape[1]
    vectors = torch.zeros(number, dim, device=device)
    inputs = torch.cat([inputs, torch.zeros(number, dim, device=device)])
    new = torch.arange(old.item_num, data.item_num, device=device)
    counts = torch.bincount(data.histories.items, minlength=data.item_num).clamp_min(1).sqrt().unsqueeze(1).to(device)
    missing = torch.ones(number, dtype=torch.bool, device=device)
    while missing.any():  # an item may be supported by users whose other items are new too: those come first
        means, support, _ = _mean_users(collaborative, inputs, data.histories, data.item_num, leave_one_out=False)
        ready = missing & (support[new] > 0)
        if not ready.any():  # cannot be: _placeable found a way
            raise DataError("interactions: a new item cannot be placed")
        placed = guess(means[new[ready]], support[new[ready]])
        vectors[ready] = placed[:, :dim]
        inputs[new[ready]] = placed[:, dim:] / counts[new[ready]]
        missing &= ~ready
    return vectors, inputs[old.item_num :]


def _mean_users(collaborative, inputs, histories: Histories, n_items: int, leave_one_out: bool):
    """m_j, the mean direction of each item's users (n_items, d), how many users it is a mean of (n_items,), and the sum
    of the outer products of all these directions (d, d).

    Args:
        inputs: (n_items, d), instead of the model's own; rows of 0 say nothing of their users.
        leave_one_out: make each user without the item itself, as he looked before it.
    """
    frozen = copy.copy(collaborative)
    frozen.item_inputs = lambda: inputs
    device = inputs.device
    rows, items, ages = histories.rows(), histories.items, histories.ages()

    def shares(part: torch.Tensor) -> torch.Tensor:
        """What each of the pairs adds to its user's vector (p, d)."""
        each = torch.arange(len(part), device=device)
        return frozen.fold_in(each, items[part].to(device), ages[part].to(device), len(part))

    totals = torch.zeros(histories.n_users, inputs.shape[1], device=device)
    for part in torch.arange(len(rows)).split(_PAIRS_AT_ONCE):
        totals.index_add_(0, rows[part].to(device), shares(part))
    means, support = torch.zeros(n_items, inputs.shape[1], device=device), torch.zeros(n_items, device=device)
    squares = torch.zeros(inputs.shape[1], inputs.shape[1], device=device)
    pairs = torch.arange(len(rows))
    if leave_one_out and len(pairs) > _MOST_PAIRS:
        pairs = torch.randperm(len(pairs), generator=generator_for(0, "pairs"))[:_MOST_PAIRS]
    for part in pairs.split(_PAIRS_AT_ONCE):
        vectors = totals[rows[part].to(device)]
        if leave_one_out:
            vectors = vectors - shares(part)
        length = vectors.norm(dim=1, keepdim=True)
        says = (length.squeeze(1) > 1e-6 * totals.norm(dim=1).mean()).float()
        vectors = vectors / length.clamp_min(1e-12) * says.unsqueeze(1)
        means.index_add_(0, items[part].to(device), vectors)
        squares += vectors.T @ vectors
        support.index_add_(0, items[part].to(device), says)
    return means / support.clamp_min(1).unsqueeze(1), support, squares


class _Regression:
    """The best linear guess of targets (n, t) from m_j (n, d), where m_j is a mean of ever so many users.

    Var(m_j) = between items + within an item / number of its users: a mean of few users is a noisy one, and the guess
    from it keeps closer to the average item. Both parts are estimated from the old items.

    Args:
        means: (n, d), of items with at least one user.
        support: (n,) number of users of each.
        squares: (d, d), sum over all pairs of the users' outer products.
        targets: (n, t).
    """

    def __init__(self, means, support, squares, targets):
        x, y, number = means.double(), targets.double(), support.double()
        weight = number.sqrt() / number.sqrt().sum()
        self.x_mean, self.y_mean = weight @ x, weight @ y
        x, y = x - self.x_mean, y - self.y_mean
        pairs = squares.double() - means.double().T @ (means.double() * number.unsqueeze(1))
        self.within = pairs / (number.sum() - len(number)).clamp_min(1)
        observed = x.T @ (x * weight.unsqueeze(1))
        spread, directions = torch.linalg.eigh(observed - self.within * float(weight @ (1 / number)))
        self.between = directions @ spread.clamp_min(0).diag() @ directions.T
        self.ridge = _RIDGE * observed.diagonal().mean() * torch.eye(len(observed), device=x.device).double()
        self.common = x.T @ (y * weight.unsqueeze(1))

    def __call__(self, means: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        """(m, d), (m,) -> (m, t)."""
        guess = self.y_mean.repeat(len(means), 1)
        for number in support.unique():
            rows = support == number
            slope = torch.linalg.solve(self.between + self.within / number + self.ridge, self.common)
            guess[rows] += (means[rows].double() - self.x_mean) @ slope
        return guess.float()


def _extend(old, new, vectors: torch.Tensor, inputs: torch.Tensor) -> None:
    """Give ``new``, a fresh collaborative model of more users and items, the tables of ``old`` and the new items' rows.

    New users have no embedding of their own (0).
    """
    before, state = old.state_dict(), new.state_dict()
    for name, value in state.items():
        kept = before[name]
        if value.shape == kept.shape:
            value.copy_(kept)
        else:
            value.zero_()[: len(kept)] = kept
    new.load_state_dict(state)
    if not len(vectors):
        return
    rows = slice(new.n_items - len(vectors), new.n_items)
    table = new.item_embedding.weight
    # What a row of the table adds to users is its own matter (degree, layers): asked by a row of ones.
    base = new.item_inputs()[rows].clone()
    table[rows] = 1.0
    gain = (new.item_inputs()[rows] - base).mean(dim=1, keepdim=True)
    table[rows] = (inputs - base) / gain
    if getattr(new, "item_offset", None) is not None:
        new.item_offset[rows] = vectors - new.forward()[1][rows]


def _train_on(model, epochs: int) -> None:
    """Further epochs of the collaborative stage on the grown histories, at a tenth of its learning rate."""
    model.stage = COLLABORATIVE
    with torch.random.fork_rng():
        torch.manual_seed(model.seed)
        model.collaborative.train()
        for number in range(len(members_of(model.collaborative))):
            stage = CollaborativeStage(model, None, number)
            stage.start()
            optimizer = adamw(stage.parameter_groups(), lr=stage.option("learning_rate") * _FINE_TUNE_RATE)
            for epoch in range(epochs):
                for interaction in stage.batches(epoch):
                    loss = model.calculate_loss(interaction.to(model.item_vectors.device))
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
    model.collaborative.eval()
    model.stage = LLM


def _histories_of(histories: Histories, users: torch.Tensor) -> Histories:
    """The histories of ``users`` (B,) as users 0 … B - 1."""
    rows, places = histories.places(users)
    return Histories(rows.numpy(), histories.items[places].numpy(), len(users))


def _with_rows(table: torch.Tensor, number: int) -> torch.Tensor:
    """A copy with rows of 0 at the end."""
    return torch.cat([table, table.new_zeros(number - len(table), *table.shape[1:])])
