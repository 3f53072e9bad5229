"""Many pieces of work, where one that fails does not stop the rest. Knows no slides.

here.py works through them in this process, local.py in processes of this machine, cluster.py on the workers of
a dask.distributed cluster: the same job, the same outcomes. locks.py keeps two processes from one piece.
"""

from wsi_pipeline.jobs.here import run_here
from wsi_pipeline.jobs.local import run_local
from wsi_pipeline.jobs.work import Busy, Job, Listener, Outcome, Report, Work

__all__ = ["Busy", "Job", "Listener", "Outcome", "Report", "Work", "run_here", "run_local"]
