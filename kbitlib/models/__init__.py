"""Language models and their k-bit selves."""
