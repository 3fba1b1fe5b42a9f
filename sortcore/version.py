"""The version, where the engine's own modules can read it."""

__version__ = "0.1.0"
