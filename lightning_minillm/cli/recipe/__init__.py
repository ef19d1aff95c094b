"""``minillm-recipe``: a whole procedure in stages, their scheduling and their report."""

from lightning_minillm.cli.recipe.command import KEYS, recipe

__all__ = ["KEYS", "recipe"]
