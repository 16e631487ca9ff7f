"""What the installed transformers calls a model's cache: `past_key_values` up to 5.23, `cache` from 5.24 on.

Models take and return it under that name. In our own code it is `past_key_values` throughout: up to 5.23 a `cache` is
something else, which continuous batching sends through the model to the attention kernel.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

CACHE_KEYWORD = "cache" if hasattr(BaseModelOutputWithPast, "cache") else "past_key_values"


def cache_keyword(past_key_values: Cache | None) -> dict[str, Any]:
    """A cache as the keyword argument that transformers' functions, layers and outputs take.

    Example:
        >>> list(cache_keyword(None)) == [CACHE_KEYWORD]
        True
    """
    return {CACHE_KEYWORD: past_key_values}


def takes_cache_keyword(function: Callable) -> Callable:
    """Lets a function with the argument `past_key_values` take it under transformers' name too.

    Raises:
        TypeError: when the function is called, if a cache is given under both names.

    Example:
        >>> takes_cache_keyword(lambda past_key_values: past_key_values)(**{CACHE_KEYWORD: 7})
        7
    """

    @wraps(function)
    def renaming(*args, **kwargs):
        if CACHE_KEYWORD in kwargs:
            return function(*args, past_key_values=kwargs.pop(CACHE_KEYWORD), **kwargs)
        return function(*args, **kwargs)

    return renaming
