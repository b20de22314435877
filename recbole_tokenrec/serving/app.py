"""The HTTP application, and the server that ``recbole-tokenrec serve`` runs.

Requests are checked by pydantic: what is malformed gets a 422 that names the field, what is unknown a 404. Answers
come from one state of the recommender each, also while ``update`` builds the next one. There is no authentication:
put it behind what your network has for that.
"""

import contextlib
import os
import socket
import warnings
from pathlib import Path
from typing import Annotated, Optional, Union

import anyio.to_thread
import torch
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from recbole_tokenrec.api.recommender import Recommender, UnknownItemsWarning
from recbole_tokenrec.api.scorers import TokenRecScorer
from recbole_tokenrec.errors import ConfigError, TokenRecError
from recbole_tokenrec.tokenizers import entity_tokens
from recbole_tokenrec.tokenizers.id_tokens import ITEM_LETTER, USER_LETTER

MOST_ITEMS, MOST_USERS, LONGEST_HISTORY, LONGEST_ID = 1000, 256, 2000, 512
MOST_BYTES = 16 * 2**20  # of a request's body: as many users with histories as are allowed fit in

# Optional and Union: pydantic reads annotations at run time, and Python 3.9 knows no "|" there.
Text = Annotated[StrictStr, Field(max_length=LONGEST_ID)]  # its length taken, half of a surrogate pair is refused, too
Id = Union[Text, StrictInt]


class RecommendRequest(BaseModel):
    """Body of ``POST /recommend``: see ``Recommender.recommend``. At least one of users and histories is needed."""

    model_config = ConfigDict(extra="forbid")

    users: Optional[list[Id]] = Field(None, min_length=1, max_length=MOST_USERS)
    histories: Optional[dict[Text, list[Id]]] = Field(None, min_length=1, max_length=MOST_USERS)
    k: StrictInt = Field(10, ge=1, le=MOST_ITEMS)
    exclude_seen: StrictBool = True
    candidates: Optional[list[Id]] = Field(None, min_length=1)


def create_app(recommender: Recommender) -> FastAPI:
    """The application over one recommender; ``recommender.update`` shows in the next answer."""
    app = FastAPI(title=f"recbole-tokenrec: {recommender.name}", redoc_url=None, lifespan=_as_many_as_processors)
    app.add_middleware(BoundedBody)
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")

    @app.exception_handler(TokenRecError)
    def mistake(request: Request, error: TokenRecError):
        return JSONResponse({"detail": str(error)}, status_code=422)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError):
        # FastAPI's own answer repeats the input, which may be what JSON cannot say (1e400 is infinite).
        detail = [{"loc": [str(part) for part in e["loc"]], "msg": e["msg"]} for e in error.errors()[:10]]
        return JSONResponse({"detail": detail}, status_code=422)

    @app.get("/health")
    def health():
        data = recommender.data
        return {
            "status": "ok",
            "model": recommender.name,
            "dataset": recommender.config["dataset"],
            "users": data.user_num - 1,
            "items": data.item_num - 1,
            "takes_histories": recommender.takes_histories,
        }

    @app.get("/recommend")
    def recommend_for_one(
        user: str = Query(..., min_length=1, max_length=LONGEST_ID),
        k: int = Query(10, ge=1, le=MOST_ITEMS),
        exclude_seen: bool = True,
    ):
        return _answer(recommender, recommender.recommend([user], k=k, exclude_seen=exclude_seen))["users"][0]

    @app.post("/recommend")
    def recommend_for_many(body: RecommendRequest):
        if body.users is None and body.histories is None:
            raise HTTPException(422, "users or histories: one of them is needed")
        longest = max(map(len, (body.histories or {"": []}).values()))
        if longest > LONGEST_HISTORY:
            raise HTTPException(422, f"histories: {longest} items are not allowed; allowed: up to {LONGEST_HISTORY}")
        frame = recommender.recommend(body.users, body.histories, body.k, body.exclude_seen, body.candidates)
        return _answer(recommender, frame)

    @app.get("/items/{item_id:path}/tokens")
    def item_tokens(item_id: str):
        tokens = _tokens(recommender, ITEM_LETTER, item_id)
        if tokens is None:
            raise HTTPException(404, f"item '{item_id}' is not known")
        return {"item_id": item_id, "title": recommender.title(item_id), "tokens": tokens}

    @app.get("/users/{user_id:path}")
    def user(user_id: str):
        history = recommender.history(user_id)
        if not history:
            raise HTTPException(404, f"user '{user_id}' is not known")
        tokens = _tokens(recommender, USER_LETTER, user_id) if _has_tokens(recommender) else []
        return {"user_id": user_id, "tokens": tokens, "history": [_item(recommender, item) for item in history]}

    @app.get("/", response_class=HTMLResponse)
    def look():
        return page

    return app


class BoundedBody:
    """Stops reading a request's body at MOST_BYTES, which would be held in memory whole before it is checked."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        taken = 0

        async def counted():
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MOST_BYTES:
                raise HTTPException(413, f"the body is too large; allowed: up to {MOST_BYTES} bytes")
            return message

        await self.app(scope, counted, send)


@contextlib.asynccontextmanager
async def _as_many_as_processors(app: FastAPI):
    """Answers are arithmetic: more of them at once than processors only makes each of them late."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = max(os.cpu_count() or 1, 2)
    yield


def _answer(recommender: Recommender, frame) -> dict:
    """``recommend``'s data frame as JSON: one entry for each user, those for whom nothing is left at the end."""
    unknown = frame.attrs["unknown_items"]
    users: dict[str, dict] = {}

    def entry(user: str, kind: str) -> dict:
        new = {"user_id": user, "kind": kind, "unknown_items": unknown.get(user, []), "items": []}
        return users.setdefault(user, new)

    columns = (frame[name].tolist() for name in ("user_id", "item_id", "rank", "score", "kind"))
    for user, item, rank, score, kind in zip(*columns):
        entry(user, kind)["items"].append({**_item(recommender, item), "rank": rank, "score": round(score, 6)})
    for user, kind in frame.attrs["without_items"].items():
        entry(user, kind)
    return {"users": list(users.values()), "unknown_candidates": frame.attrs["unknown_candidates"]}


def _item(recommender: Recommender, item: str) -> dict:
    tokens = _tokens(recommender, ITEM_LETTER, item) if _has_tokens(recommender) else []
    return {"item_id": item, "title": recommender.title(item), "tokens": tokens}


def _has_tokens(recommender: Recommender) -> bool:
    return isinstance(recommender._scorer, TokenRecScorer)


def _tokens(recommender: Recommender, letter: str, name: str) -> Optional[list[str]]:
    """ID tokens of a user or an item, None if it is not known.

    Raises:
        HTTPException: the model has no tokens (404).
    """
    if not _has_tokens(recommender):
        raise HTTPException(404, f"model {recommender.name} has no ID tokens")
    data, model = recommender.data, recommender.model
    numbers, codes = (
        (data.user_numbers, model.user_codes) if letter == USER_LETTER else (data.item_numbers, model.item_codes)
    )
    number = numbers.get(name)
    return None if number is None or number >= len(codes) else entity_tokens(letter, codes[number].tolist())


def run_server(recommender: Recommender, host: str, port: int, threads: int) -> int:
    """Serve until interrupted; prints the address once requests are taken.

    Raises:
        ConfigError: the address cannot be taken.
    """
    import uvicorn

    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", UnknownItemsWarning)  # answers carry it
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: cannot be taken ({error.strerror or error})") from error
    recommender.recommend(recommender.users[:1], k=1)  # the first answer is slow; let nobody wait for it
    address = listener.getsockname()
    print(f"serving {recommender.name} on http://{host}:{address[1]} (stop: Ctrl-C)", flush=True)
    server = uvicorn.Server(uvicorn.Config(create_app(recommender), log_level="warning"))
    server.run(sockets=[listener])
    return 0
