"""The stores of an index: one module per database."""
