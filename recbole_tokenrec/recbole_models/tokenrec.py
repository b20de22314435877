from recbole_tokenrec.models.tokenrec import TokenRec

__all__ = ["TokenRec"]
