"""Collaborative representations -> discrete ID tokens. One technique per file, one contract for all (``base.py``)."""

from recbole_tokenrec.tokenizers.base import IDTokenizer, TokenizerOutput
from recbole_tokenrec.tokenizers.id_tokens import code_statistics, entity_tokens, token_names
from recbole_tokenrec.tokenizers.kmeans import KMeansTokenizer
from recbole_tokenrec.tokenizers.mq import FrozenMQTokenizer, MQTokenizer
from recbole_tokenrec.tokenizers.rq import RQTokenizer

__all__ = [
    "FrozenMQTokenizer",
    "IDTokenizer",
    "KMeansTokenizer",
    "MQTokenizer",
    "RQTokenizer",
    "TokenizerOutput",
    "build_tokenizer",
    "code_statistics",
    "entity_tokens",
    "token_names",
]

TOKENIZERS = {"mq": MQTokenizer, "mq_frozen": FrozenMQTokenizer, "rq": RQTokenizer, "kmeans": KMeansTokenizer}


def build_tokenizer(settings, input_dim: int, num_codebooks: int) -> IDTokenizer:
    """The tokenizer that ``id_tokenizer`` names, for representations of ``input_dim`` dimensions."""
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
