"""Many pieces of work, where one that fails does not stop the rest. Knows no slides.

sequential.py works through them in this process, local.py in processes of this machine, cluster.py on the workers of
a dask.distributed cluster: the same job, the same outcomes. locks.py keeps two processes from one piece.
"""

from wsi_pipeline.jobs.local import run_local
from wsi_pipeline.jobs.protocols import Busy, Job, Listener, Outcome, Work
from wsi_pipeline.jobs.sequential import run_sequential

__all__ = ["Busy", "Job", "Listener", "Outcome", "Work", "run_local", "run_sequential"]
