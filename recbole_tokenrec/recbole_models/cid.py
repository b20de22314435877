from recbole_tokenrec.models.p5 import CID

__all__ = ["CID"]
