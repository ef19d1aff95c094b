"""``minillm-recipe``: a whole procedure, its stages, how they are scheduled, and their report."""

from lightning_minillm.cli.recipe.command import KEYS, main, recipe

__all__ = ["KEYS", "main", "recipe"]
