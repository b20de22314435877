from recbole_tokenrec.models.p5 import P5

__all__ = ["P5"]
