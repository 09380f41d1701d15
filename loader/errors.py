"""The loader's errors, one class for each meaning: Lambda passes class and message on to the caller."""

from __future__ import annotations


class LoaderError(Exception):
    """The message says what is wrong, with the value, and what to do about it."""


class InvalidRequestError(LoaderError):
    """The event asks for an unknown action, has wrong fields, or a name that is not allowed."""


class ConfigurationError(LoaderError):
    """An environment variable of the loader is missing or has a value that cannot be used."""


class BucketError(LoaderError):
    """The bucket cannot be read: it does not exist, or reading is forbidden or fails."""


class ObjectMissingError(LoaderError):
    """The bucket has no such object."""


class ObjectCorruptError(LoaderError):
    """An object is not what the manifest says, or the manifest itself is invalid."""


class VersionMissingError(LoaderError):
    """The file system has no such version."""


class VersionCorruptError(LoaderError):
    """A version on the file system is not what its manifest says."""


class StorageFullError(LoaderError):
    """The file system has no room for the version."""
