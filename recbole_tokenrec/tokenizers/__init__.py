"""Collaborative representations -> discrete ID tokens. One technique per file, one contract for all (``base.py``)."""

from recbole_tokenrec.tokenizers.base import IDTokenizer, TokenizerOutput
from recbole_tokenrec.tokenizers.id_tokens import code_statistics, entity_tokens, token_names
from recbole_tokenrec.tokenizers.mq import MQTokenizer

__all__ = ["IDTokenizer", "MQTokenizer", "TokenizerOutput", "code_statistics", "entity_tokens", "token_names"]
