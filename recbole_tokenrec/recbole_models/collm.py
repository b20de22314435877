from recbole_tokenrec.models.collm import CoLLM

__all__ = ["CoLLM"]
