"""Stages, their loaders, losses and cache, and the trainer that walks them."""
