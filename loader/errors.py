"""What can keep the loader from its work, one class a meaning: Lambda gives the caller class and message."""

from __future__ import annotations


class LoaderError(Exception):
    """The message says what is wrong, with the value, and what to do about it."""


class InvalidRequestError(LoaderError):
    """The event asks for nothing that the loader does, or with a name that is none."""


class ConfigurationError(LoaderError):
    """An environment variable of the loader is missing or has a value that cannot be used."""


class BucketError(LoaderError):
    """The bucket cannot be read: it is not there, forbidden or not reached."""


class ObjectMissingError(LoaderError):
    """The bucket has no such object."""


class ObjectCorruptError(LoaderError):
    """An object is not what the manifest says, or the manifest is none."""


class VersionMissingError(LoaderError):
    """The file system has no such version."""


class VersionCorruptError(LoaderError):
    """A version on the file system is not what its manifest says."""


class StorageFullError(LoaderError):
    """The file system has no room for the version."""
