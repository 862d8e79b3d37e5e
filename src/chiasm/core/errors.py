"""Errors a user can act on: each is one line that says what was found, where, and what to do."""


class ChiasmError(Exception):
    """Base of every error raised on purpose; the command line prints it as one line."""


class ConfigError(ChiasmError):
    """A recipe, a configuration file or a command-line override is wrong."""


class DataError(ChiasmError):
    """A sample cannot be used: missing or corrupt image, wrong placeholders, empty conversation."""


class PlaceholderError(DataError):
    """As many places for pictures as pictures were expected, and others were found."""


class CheckpointError(ChiasmError):
    """A checkpoint is missing, incomplete or does not fit the model."""


class NotGenerativeError(ChiasmError):
    """An image was asked of a model that only reads images."""


class MissingExtraError(ChiasmError):
    """An optional dependency is absent; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: "
            f"pip install 'chiasm[{extra}]'"
        )
