"""Errors that a user can mend, told apart from failures of ours."""


class UserError(Exception):
    """A user's mistake: one line that says what is wrong, the value that was found and how to mend it.

    The command line prints the message alone (no traceback) and exits with code 2.
    """
