"""Errors a user can act on: each is one line that says what was found, where, and what to do."""

import signal


class ChiasmError(Exception):
    """Base of every error raised on purpose; the command line prints it as one line."""


class ConfigError(ChiasmError):
    """A recipe, a configuration file or a command-line override is wrong."""


class DataError(ChiasmError):
    """A sample cannot be used: missing or corrupt image, wrong placeholders, empty conversation."""


class PlaceholderError(DataError):
    """As many places for images as images were expected, and others were found."""


class CheckpointError(ChiasmError):
    """A checkpoint is missing, incomplete or does not fit the model."""


class DivergedError(ChiasmError):
    """Training was stopped because its steps could not be applied any more."""


class InterruptedRunError(ChiasmError):
    """A signal ended the run; code is what a shell expects the process to exit with."""

    def __init__(self, number: int, step: int, saved: bool):
        name = signal.Signals(number).name if number else "a signal to another rank"
        kept = "its checkpoint is complete" if saved else "its checkpoint could not be written"
        super().__init__(f"interrupted by {name} after step {step}; {kept}; continue with --resume")
        self.code = 128 + (number or signal.SIGTERM)


class NotGenerativeError(ChiasmError):
    """An image was asked of a model that only reads images."""


class MissingExtraError(ChiasmError):
    """An optional dependency is absent; the message is the line that installs it.

    extra: the extra of pyproject.toml that has the package; None for a package of which only the
    files are used, installed without what it depends on.
    """

    def __init__(self, package: str, extra: str | None, purpose: str):
        line = (
            f"pip install -e '.[{extra}]' in the folder of chiasm's pyproject.toml"
            if extra
            else f"pip install --no-deps {package}"
        )
        super().__init__(f"{purpose} needs the package '{package}', which is not installed: {line}")
