"""The models, one module each, found by RecBole through ``recbole_tokenrec/recbole_models`` (see ``registry.py``).

``neumf.py`` is no model: it is the full sort that RecBole's own NeuMF lacks.
"""
