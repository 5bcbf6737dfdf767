"""Errors of reading a model's folder."""


class ConfigError(ValueError):
    """A configuration cannot be read as the port needs it."""


class UnknownConfigFieldError(ConfigError):
    """A field the port has never heard of: it might change the computation."""


class MissingConfigFieldError(ConfigError):
    """A field without which the computation is not determined."""


class UnsupportedConfigError(ConfigError):
    """A known field with a value that changes the computation in a way the port does not do."""


class MissingConfigFileError(ConfigError, FileNotFoundError):
    """A model folder lacks a file."""
