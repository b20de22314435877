"""The models, one module each. RecBole finds them through ``recbole_tokenrec/recbole_models`` (see ``registry.py``)."""
