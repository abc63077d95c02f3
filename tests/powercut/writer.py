"""Appends records to a preallocated file, each write synced before its number is printed: what a journal does.

    writer.py FILE buffered|direct     prints `N` once record N is synced; ends with exit code 3 at the first error
"""

import mmap
import os
import sys

RECORD = 4096


def main():
    path, how = sys.argv[1], sys.argv[2]
    flags = os.O_RDWR | os.O_CREAT | (os.O_DIRECT if how == "direct" else 0)
    file = os.open(path, flags, 0o644)
    os.posix_fallocate(file, 0, RECORD * 20_000)
    os.fsync(file)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(folder)
    buffer = mmap.mmap(-1, RECORD)  # aligned, as O_DIRECT wants it
    for number in range(20_000):
        buffer[:] = b"%015d\n" % number * (RECORD // 16)
        try:
            os.pwrite(file, buffer, number * RECORD)
            os.fdatasync(file)
        except OSError as e:
            print(e, file=sys.stderr)
            sys.exit(3)
        print(number, flush=True)


if __name__ == "__main__":
    main()
