"""How the cross-encoder that comes with the package was trained.

``python -m pipeline.training.joint.lists`` makes the lists to learn from, on a CPU, and ``python -m
pipeline.training.joint`` trains on them, on a GPU where there is one: first a model of all the embedder's layers, then
one of half of them that learns from it.
"""
