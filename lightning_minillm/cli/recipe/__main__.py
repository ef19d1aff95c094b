"""Run minillm-recipe with ``python -m lightning_minillm.cli.recipe``."""

from lightning_minillm.cli.recipe import main

if __name__ == "__main__":
    main()
