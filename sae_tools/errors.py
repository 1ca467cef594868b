"""The one exception for what a user got wrong."""


class UserError(Exception):
    """Something the user can mend: one sentence that says what was wrong, where, and what was expected.

    Commands print it and exit with status 2; everything else that escapes is a bug of ours and keeps its traceback.
    """
