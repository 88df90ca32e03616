"""Errors that are the user's to fix."""


class UsageError(Exception):
    """What was given cannot be used; the one sentence says what was given, what was expected and what to do.

    Raised while the command line, a configuration file or a target is read. It never means that a connector broke a
    rule, and pytest ends with exit code 4 (``pytest.ExitCode.USAGE_ERROR``).
    """


class EngineUnusableError(UsageError):
    """No engine can be had in this environment, whatever connector is asked for: there is no need to try again."""
