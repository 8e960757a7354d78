"""Every exception that hubsae raises on purpose; all of them derive from `HubsaeError`."""

import sys
import warnings


class HubsaeError(Exception):
    """Root of all errors raised on purpose. The message says what is wrong, with values, and what to do."""


class BackendError(HubsaeError):
    """MLX cannot run on this machine as it is installed."""


class ConfigError(HubsaeError, ValueError):
    """A setting has a value that cannot work."""


class SiteError(HubsaeError, KeyError):
    """A site (layer, component) that the model does not have, or that did not run."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class DataError(HubsaeError, ValueError):
    """Texts, tokens or activations that cannot be used: too few, not finite, out of range."""


class ModelError(HubsaeError):
    """A language model that cannot be loaded or read correctly."""


class ArtifactError(HubsaeError):
    """A folder or repository that is not a valid artifact of the expected kind."""


class HubError(HubsaeError):
    """The Hub refused or could not be reached: missing, private, gated, wrong token, offline."""


class CompatibilityError(HubsaeError):
    """An artifact and the base model at hand do not belong together."""


class LabelError(HubsaeError):
    """A labeler that failed, or whose answers cannot be used."""


class HubsaeWarning(UserWarning):
    """Something works, but not as the user may believe."""


def warn(message: str) -> None:
    """Warn with `HubsaeWarning`, at the line outside of hubsae that led here."""
    level, frame = 1, sys._getframe()
    while frame and frame.f_globals.get("__name__", "").split(".")[0] == "hubsae":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, HubsaeWarning, stacklevel=level)
