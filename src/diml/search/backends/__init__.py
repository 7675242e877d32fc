"""Stores of an index, one file for each back end."""
