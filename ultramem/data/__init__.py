"""From text to batches of tokens.

`prepare.py` turns text into a folder of token shards, once; `tokens.py` opens that folder as one long sequence, and
`loader.py` cuts the sequence into batches in an order that is a function of the seed and the position.
"""

from ultramem.data.errors import DataError
from ultramem.data.loader import TokenLoader, validation_batches
from ultramem.data.tokens import TokenDataset

__all__ = ["DataError", "TokenDataset", "TokenLoader", "validation_batches"]
