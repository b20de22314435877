"""An example of serving: a FastAPI application over :class:`recbole_tokenrec.api.Recommender` (the extra ``serve``)."""
