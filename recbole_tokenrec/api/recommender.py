"""The object that ``recbole_tokenrec.load`` returns: top-k items for raw ids, and growth by new interactions."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pandas as pd
import torch

from recbole_tokenrec.api.requests import ANONYMOUS, raw_ids, read_histories, read_interactions
from recbole_tokenrec.api.scorers import Scorer, TokenRecScorer
from recbole_tokenrec.checkpoints import rebuild_config
from recbole_tokenrec.errors import ConfigError, DataError
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.snapshot import PADDING, DataSnapshot

HOT, WARM, COLD = "hot", "warm", "cold"
_USERS_AT_ONCE = 4096


class UnknownItemsWarning(UserWarning):
    """Items of a history or of the candidates that the model does not know; they were left out."""


class Recommender:
    """Recommendations of one trained model on the data's own ids.

    Users are *hot* (trained, or brought in by :meth:`update`), *warm* (a history is given) or *cold* (neither): cold
    users get the most popular items, and ``kind`` says so.

    Attributes:
        name: of the model.
        origin: the file or folder it was loaded from.
    """

    def __init__(self, scorer: Scorer, config: dict, origin: str, time_field: str = "timestamp"):
        """``config``: the model's configuration as plain data, see ``checkpoints.plain_config``."""
        self._scorer, self.config, self.origin, self._time_field = scorer, config, str(origin), time_field
        self.name = config["model"]
        self._updating = threading.Lock()

    @property
    def data(self) -> DataSnapshot:
        return self._scorer.data

    @property
    def model(self) -> torch.nn.Module:
        return self._scorer.model

    @property
    def takes_histories(self) -> bool:
        """Whether the model recommends for users it was not trained on, by their histories."""
        return self._scorer.takes_new_users

    @property
    def users(self) -> list[str]:
        """Raw ids of the hot users."""
        counts = self.data.counts.tolist()
        return [token for token, count in zip(self.data.users, counts) if count and token != PADDING]

    @property
    def items(self) -> list[str]:
        return self.data.items[1:]

    def history(self, user) -> list[str]:
        """Raw ids of what a hot user took, oldest first; [] for anybody else."""
        data = self.data
        number = data.user_numbers.get(raw_ids(user, "user")[0])
        return [] if number is None else [data.items[item] for item in data.histories.of_user(number).tolist()]

    def title(self, item) -> str:
        """What the data's ``.item`` file calls an item, "" if it does not."""
        number = self.data.item_numbers.get(raw_ids(item, "item")[0])
        return "" if number is None or self.data.titles is None else self.data.titles[number]

    # ---- recommending -----------------------------------------------------------------------------------------

    def recommend(
        self, users=None, histories=None, k: int = 10, exclude_seen: bool = True, candidates=None
    ) -> pd.DataFrame:
        """The ``k`` best items of each user.

        Args:
            users: raw ids, one or many. None: the users of ``histories``, or without those all hot users.
            histories: what users took, oldest first: a data frame with the data's user and item columns (and its
                time column, if order matters), a mapping user -> items, or the items of one user (of ``users``, or
                nameless). A history given here is used instead of the one that the model has of that user.
            exclude_seen: leave out what the user took, as far as the model or ``histories`` know it. A model trained
                by leave-one-out does not know a user's last two items; :meth:`update` tells it.
            candidates: raw ids of the items to choose among, for all users.

        Returns:
            Columns ``user_id``, ``item_id``, ``rank`` from 1, ``score``, ``kind`` (hot, warm, cold), users in the
            order asked for. Scores are the model's own (TokenRec: cosine); for cold users the share of all users who
            took the item. ``attrs["unknown_items"]`` maps users to items of their histories that the model does not
            know, which a warning reports too; ``attrs["unknown_candidates"]`` lists those of the candidates;
            ``attrs["without_items"]`` maps users for whom nothing is left to recommend to their kind.

        Raises:
            DataError: an id is no id, no candidate is known, or ``histories`` are of none of ``users``.
            ConfigError: ``k`` is out of range, or the model cannot recommend for users it was not trained on.
        """
        scorer = self._scorer  # the same for the whole answer, whatever update() does meanwhile
        data = scorer.data
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ConfigError(f"k: {k!r} is not allowed; allowed: int in [1, inf)")
        given = {} if histories is None else read_histories(histories, data.uid_field, data.iid_field, self._time_field)
        asked = raw_ids(users, "users") if users is not None else self.users if histories is None else list(given)
        if users is not None and given:
            given = _of_users(given, asked)
        unknown = {
            user: [item for item in dict.fromkeys(given[user]) if item not in data.item_numbers]
            for user in asked
            if user in given
        }
        unknown = {user: items for user, items in unknown.items() if items}
        chosen, strangers = self._candidates(candidates, data)
        _warn(unknown, strangers)

        counts = data.counts
        groups: dict[str, list[int]] = {HOT: [], WARM: [], COLD: []}
        known = {user: [data.item_numbers[i] for i in given[user] if i in data.item_numbers] for user in asked
                 if user in given}  # fmt: skip
        for place, user in enumerate(asked):
            number = data.user_numbers.get(user, 0)
            kind = (WARM if known[user] else COLD) if user in given else HOT if number and counts[number] else COLD
            groups[kind].append(place)
        if groups[WARM] and not scorer.takes_new_users:
            raise ConfigError(
                f"model {self.name} recommends for users it was trained on, by the histories it was trained on; a "
                f"history was given for '{asked[groups[WARM][0]]}'. Models that take histories: TokenRec (with "
                "cf_model: LightGCN), LightGCNSoftmax, SASRecCE, BERT4RecCE, S3RecCE"
            )
        answers = []
        for start in range(0, len(groups[HOT]), _USERS_AT_ONCE):
            places = groups[HOT][start : start + _USERS_AT_ONCE]
            numbers = torch.tensor([data.user_numbers[asked[place]] for place in places])
            rows, entries = data.histories.places(numbers)
            exclude = (rows, data.histories.items[entries]) if exclude_seen else None
            answers.append((HOT, places, *scorer.top(numbers, k, exclude, chosen)))
        for start in range(0, len(groups[WARM]), _USERS_AT_ONCE):
            places = groups[WARM][start : start + _USERS_AT_ONCE]
            taken = _histories([known[asked[place]] for place in places])
            exclude = (taken.rows(), taken.items) if exclude_seen else None
            answers.append((WARM, places, *scorer.top_new(taken, k, exclude, chosen)))
        if groups[COLD]:
            answers.append((COLD, groups[COLD], *_most_popular(data, len(groups[COLD]), k, chosen)))
        frame = _frame(asked, answers, data)
        without = {}
        if len(frame) < k * len(asked):
            found = set(frame["user_id"])
            without = {asked[place]: kind for kind, places in groups.items() for place in places
                       if asked[place] not in found}  # fmt: skip
        # Few entries, if any: pandas copies attrs with every operation.
        frame.attrs.update(unknown_items=unknown, unknown_candidates=strangers, without_items=without)
        return frame

    @staticmethod
    def _candidates(candidates, data: DataSnapshot):
        """Item numbers (c,) or None, and the raw ids that are unknown."""
        if candidates is None:
            return None, []
        wanted = raw_ids(candidates, "candidates")
        numbers = [data.item_numbers[item] for item in wanted if item in data.item_numbers]
        if not numbers:
            raise DataError("candidates: the model knows none of them")
        return torch.tensor(numbers), [item for item in wanted if item not in data.item_numbers]

    # ---- growing ----------------------------------------------------------------------------------------------

    def update(self, interactions: pd.DataFrame, fine_tune: bool = False, epochs: int = 3) -> dict:
        """Take in new interactions, with the new users and items among them; nothing is retrained but on request.

        Users: their representation is folded in through the frozen item tables, the frozen MQ-Tokenizer gives them
        tokens. Items: placed in the collaborative space by the users who took them (``growth.py``), tokens by the
        frozen MQ-Tokenizer. The language model is not touched. Scores of old items for users without new
        interactions stay what they were.

        Args:
            interactions: a data frame with the data's user and item columns, in time order or with its time column.
            fine_tune: train the collaborative stage on, from where it is, for ``epochs`` epochs on all interactions.

        Returns:
            What happened: ``new_users``, ``new_items``, ``updated_users`` (counts), ``interactions`` taken in,
            ``left_out`` (items that nobody took who also took a known one: nothing places them), and with
            ``fine_tune`` ``drift``: mean cosine between the old items' vectors before and after.

        Raises:
            DataError: the frame is no table of interactions, or holds none.
            ConfigError: the model cannot take in new interactions.

        An update either happens as a whole or, on an error, not at all; whoever asks for recommendations meanwhile is
        answered by the old state.
        """
        from recbole_tokenrec.api.growth import grown

        if fine_tune and (isinstance(epochs, bool) or not isinstance(epochs, (int, np.integer)) or epochs < 1):
            raise ConfigError(f"epochs: {epochs!r} is not allowed; allowed: int in [1, inf)")
        with self._updating:
            scorer = self._scorer
            if not isinstance(scorer, TokenRecScorer):
                raise ConfigError(f"update: model {self.name} cannot take in new interactions; TokenRec can")
            data = scorer.data
            users, items = read_interactions(interactions, data.uid_field, data.iid_field, self._time_field)
            self._scorer, report = grown(
                scorer, rebuild_config(self.config), users, items, epochs if fine_tune else 0
            )
        if report["left_out"]:
            warnings.warn(
                f"update: nobody who took these items also took a known one, they were left out: "
                f"{_short(report['left_out'])}",
                UnknownItemsWarning,
                stacklevel=2,
            )
        return report

    # ---- artefacts --------------------------------------------------------------------------------------------

    def tokens(self) -> pd.DataFrame:
        """ID tokens of every user and item; see ``tokens.py``."""
        from recbole_tokenrec.api.tokens import token_table

        return token_table(self)

    def save(self, path) -> None:
        """Write a checkpoint of the present state, updates included; ``load`` takes it."""
        from recbole_tokenrec.api.export import save

        save(self, path)

    def export(self, folder, index: bool = True) -> list[str]:
        """Write a Hugging Face folder; see ``export.py``. Returns the names of its files."""
        from recbole_tokenrec.api.export import export

        return export(self, folder, index)


def _of_users(given: dict[str, list[str]], asked: list[str]) -> dict[str, list[str]]:
    """The histories ``given`` beside the users ``asked``: one without a name is the only user's."""
    if ANONYMOUS in given and len(given) == 1 and ANONYMOUS not in asked:
        if len(asked) != 1:
            raise DataError(f"histories: the items of one user, for {len(asked)} users; give a mapping user -> items")
        return {asked[0]: given[ANONYMOUS]}
    if asked and not set(given) & set(asked):
        raise DataError(f"histories: of '{next(iter(given))}', who is none of users")
    return given


def _histories(lists: list[list[int]]) -> Histories:
    """Users 0 … B - 1 with these items."""
    rows = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    return Histories(rows, np.array([item for items in lists for item in items], dtype=np.int64), len(lists))


def _most_popular(data: DataSnapshot, number: int, k: int, chosen) -> tuple[torch.Tensor, torch.Tensor]:
    share = data.popularity.clone()
    if chosen is not None:
        closed = torch.ones(len(share), dtype=torch.bool)
        closed[chosen] = False
        share[closed] = -torch.inf
    share[0] = -torch.inf
    value, item = share.sort(descending=True, stable=True)
    value, item = value[:k], item[:k].masked_fill(value[:k] == -torch.inf, 0)
    return item.expand(number, -1), value.expand(number, -1)


def _frame(asked: list[str], answers, data: DataSnapshot) -> pd.DataFrame:
    """One row for each item that was found, users in the order of ``asked``."""
    places, ranks, items, scores, kinds = [], [], [], [], []
    for kind, group, found, score in answers:
        found, score = found.cpu().numpy(), score.cpu().numpy()
        row, column = (found > 0).nonzero()
        places.append(np.asarray(group)[row])
        ranks.append(column + 1)
        items.append(found[row, column])
        scores.append(score[row, column])
        kinds.append(np.full(len(row), kind, dtype=object))
    if not places:
        return pd.DataFrame({name: [] for name in ("user_id", "item_id", "rank", "score", "kind")})
    place = np.concatenate(places)
    order = np.argsort(place, kind="stable")
    return pd.DataFrame(
        {
            "user_id": np.asarray(asked, dtype=object)[place[order]],
            "item_id": data.item_names[np.concatenate(items)[order]],
            "rank": np.concatenate(ranks)[order],
            "score": np.concatenate(scores)[order],
            "kind": np.concatenate(kinds)[order],
        }
    )


def _warn(unknown: dict[str, list[str]], strangers: list[str]) -> None:
    if unknown:
        user, items = next(iter(unknown.items()))
        more = f" (and {len(unknown) - 1} more users have such items)" if len(unknown) > 1 else ""
        text = f"the model does not know these items of user '{user}', they were left out: {_short(items)}{more}"
        warnings.warn(text, UnknownItemsWarning, stacklevel=3)
    if strangers:
        text = f"the model does not know these candidates, they were left out: {_short(strangers)}"
        warnings.warn(text, UnknownItemsWarning, stacklevel=3)


def _short(items: list[str], most: int = 10) -> str:
    return ", ".join(items[:most]) + (f" … ({len(items)} in all)" if len(items) > most else "")
