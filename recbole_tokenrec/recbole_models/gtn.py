from recbole_tokenrec.models.gtn import GTN

__all__ = ["GTN"]
