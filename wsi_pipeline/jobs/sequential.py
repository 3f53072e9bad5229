"""One item after another in this process, the next one prefetched."""

import logging
import time
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from functools import partial
from itertools import islice

from wsi_pipeline.base.errors import JobError
from wsi_pipeline.jobs.protocols import (
    BUSY_POLL_S,
    PREFETCHED,
    Busy,
    Item,
    Job,
    Listener,
    Outcome,
    Result,
    Work,
)

log = logging.getLogger(__name__)


def run_sequential(
    job: Job[Item, Result], items: Iterable[Item], listener: Listener[Item]
) -> Generator[Outcome[Item, Result]]:
    """The outcome of each item in turn; one that another process works on comes when that one is done.

    Only what is no `Exception` (Ctrl-C), a JobError, and what opening the job raises, ends the whole.
    """
    with closing(job.open(0)) as work:
        yield from _run(work, deque(items), listener)


def _run(
    work: Work[Item, Result], queue: deque[Item], listener: Listener[Item]
) -> Generator[Outcome[Item, Result]]:
    put_off = 0  # how many at the queue's end were busy, one after the other
    while queue:
        item = queue.popleft()
        listener.started(item, 1, "")
        work.prefetch([item, *islice(queue, PREFETCHED)])
        try:
            outcome = Outcome(item, work(item, partial(listener.progressed, item)), None)
        except Busy as busy:
            listener.waits(item, str(busy))
            queue.append(item)
            put_off += 1
            if put_off >= len(queue):
                time.sleep(BUSY_POLL_S)
            continue
        except JobError:  # nor could any other item be done
            raise
        except Exception as error:
            log.debug("failed: %s", item, exc_info=error)
            outcome = Outcome(item, None, error)
        put_off = 0
        yield outcome
