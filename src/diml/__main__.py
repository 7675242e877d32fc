"""`python -m diml`: the same as the command `diml`, also under torchrun."""

from diml.cli import process

process()
