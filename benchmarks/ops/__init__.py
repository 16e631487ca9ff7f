"""One script an operation: floor, ours, what plain PyTorch does."""
