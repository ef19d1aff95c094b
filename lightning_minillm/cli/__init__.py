"""The commands. Only this package knows Hydra."""
