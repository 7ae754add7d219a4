"""What ends a run from outside: the disk, the numbers, the machine."""


class RunError(RuntimeError):
    """A run can't go on; the message says why and what helps, and is shown without a traceback."""


class NonFiniteError(RunError):
    """Too many steps in a row had a loss or gradient that was not finite."""
