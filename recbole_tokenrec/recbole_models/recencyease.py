from recbole_tokenrec.models.recency_ease import RecencyEASE

__all__ = ["RecencyEASE"]
