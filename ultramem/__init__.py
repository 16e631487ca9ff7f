"""ultramem: memory layers for language models."""
