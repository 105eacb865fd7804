"""How a process that serves keeps Python's garbage collector from stalling it."""

import gc


def settle_garbage_collector() -> None:
    """What start-up made stays for ever: never look at it again, and look at the rest less often.

    A full collection looks at every object: at 0.1 s for the modules alone, all that is under way waits.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
