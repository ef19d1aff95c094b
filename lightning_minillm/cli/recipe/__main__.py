"""Run minillm-recipe with ``python -m lightning_minillm.cli.recipe``."""

from lightning_minillm.cli import commands

if __name__ == "__main__":
    commands.recipe()
