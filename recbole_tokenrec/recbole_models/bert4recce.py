from recbole_tokenrec.models.bert4rec_ce import BERT4RecCE

__all__ = ["BERT4RecCE"]
