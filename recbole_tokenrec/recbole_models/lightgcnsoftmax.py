from recbole_tokenrec.models.lightgcn_softmax import LightGCNSoftmax

__all__ = ["LightGCNSoftmax"]
