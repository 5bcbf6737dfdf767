"""A fault that never ends, and one that does: for the test of the harness."""

import time


def cases(folder, count, seed):
    """The first never ends."""
    return list(range(count))


def judge(case, folder):
    """Nothing goes wrong but time."""
    if case == 0:
        time.sleep(1e6)
    return ""
