"""Errors that a person caused and can mend: printed as one message, without a traceback."""

import errno
import functools
import sys


class UserError(Exception):
    """Bad input. The message says what is wrong, where, and what to do."""


def command(main):
    """Decorate the main function of a command: a `UserError` or a full disk ends it with a message and exit code 2."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            message = str(error)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on", file=sys.stderr)
            sys.exit(130)
        except OSError as error:
            where = error.filename or "while writing"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                message = (
                    f"the disk is full ({where}): free some space and run the same command again"
                )
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                message = (
                    f"{where}: {error.strerror}. Choose another place, or change its permissions"
                )
            else:
                raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

    return wrapped
