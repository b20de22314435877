"""Collaborative representations -> discrete ID tokens. One technique per file, one contract for all (``base.py``)."""

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.tokenizers.base import IDTokenizer, TokenizerOutput
from recbole_tokenrec.tokenizers.id_tokens import code_statistics, entity_tokens, token_names
from recbole_tokenrec.tokenizers.mq import MQTokenizer

__all__ = [
    "IDTokenizer",
    "MQTokenizer",
    "TokenizerOutput",
    "build_tokenizer",
    "code_statistics",
    "entity_tokens",
    "token_names",
]

TOKENIZERS = {"mq": MQTokenizer}


def build_tokenizer(settings, input_dim: int, num_codebooks: int) -> IDTokenizer:
    """The tokenizer that ``id_tokenizer`` names, for representations of ``input_dim`` dimensions.

    Raises:
        ConfigError: no tokenizer of that name.
    """
    if settings.id_tokenizer not in TOKENIZERS:
        raise ConfigError(f"id_tokenizer: {settings.id_tokenizer!r} is not allowed; allowed: {', '.join(TOKENIZERS)}")
    return TOKENIZERS[settings.id_tokenizer](
        input_dim,
        num_codebooks,
        settings.mq_codebook_size,
        codeword_dim=settings.mq_codeword_dim,
        hidden_size=settings.mq_hidden_size,
        masking_ratio=settings.mq_masking_ratio,
        beta=settings.mq_beta,
        skip=settings.mq_skip,
    )
