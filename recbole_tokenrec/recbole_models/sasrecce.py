from recbole_tokenrec.models.sasrec_ce import SASRecCE

__all__ = ["SASRecCE"]
