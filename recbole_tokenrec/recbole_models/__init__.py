"""One module per model of ours, named as RecBole's ``get_model`` looks for it: the model's name in lower case.

``registry`` appends this folder to the path of ``recbole.model.general_recommender``.
"""
