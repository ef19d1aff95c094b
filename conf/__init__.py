"""Hydra configuration of the commands, packaged as ``lightning_minillm.conf``."""
