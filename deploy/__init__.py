"""Ships what is built: packages for Lambda, and versions of the model into a deployed stack. Never deployed itself."""


class DeployError(Exception):
    """Packaging or publishing cannot go on; the message says what is wrong and what to do."""
