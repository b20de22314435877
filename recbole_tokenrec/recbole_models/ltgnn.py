from recbole_tokenrec.models.ltgnn import LTGNN

__all__ = ["LTGNN"]
