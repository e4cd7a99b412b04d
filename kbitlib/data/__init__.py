"""Text to tokens: a corpus collected, cleaned, freed of duplicates and split, and the batches drawn from it."""
