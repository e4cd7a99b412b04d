"""Training, evaluation and fine-tuning of language models."""
