"""From a trained model to recommendations for the data's own ids: ``recbole_tokenrec.load`` and what it returns."""

from recbole_tokenrec.api.loading import load
from recbole_tokenrec.api.recommender import Recommender

__all__ = ["Recommender", "load"]
