"""The one error of this package."""


class DataError(ValueError):
    """Text or prepared data is missing, damaged or not what it should be; the message names the file and a way out."""
