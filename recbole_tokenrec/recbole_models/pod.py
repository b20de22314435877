from recbole_tokenrec.models.pod import POD

__all__ = ["POD"]
