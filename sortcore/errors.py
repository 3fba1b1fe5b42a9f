"""What can go wrong, named by its cause. Every message says what was seen, what was expected and what to do."""


class SortcoreError(Exception):
    """Base of every error that sortcore raises on purpose."""


class RecordingError(SortcoreError):
    """The recording cannot be used: missing, truncated, too short, no usable channel."""


class ProbeError(SortcoreError):
    """The probe does not fit the recording, or cannot be read."""


class ConfigError(SortcoreError):
    """A setting has a value outside its range, or an unknown name."""


class OutputError(SortcoreError):
    """The result cannot be written, or a saved one cannot be read."""


class ClusterError(SortcoreError):
    """Other processes cannot do the work: they have another sortcore, or are lost again and again."""


class ModelError(SortcoreError, ValueError):
    """Arrays or numbers given to the model do not fit together, or lie outside their range."""


class MissingPackageError(SortcoreError, ImportError):
    """A package that only some formats need is not installed."""
