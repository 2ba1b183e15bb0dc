"""The stages of jobs: where extraction, index, storage and metadata meet.

Every stage has parts (`open_stage`). A part is one function call that may run twice. `next_stage`
says what follows when all are done. `pipeline.local` calls the parts in a loop, `workers.tasks` one
for each message. The truth is in SQL and the store only, so any process can continue an unfinished
job.

::

    register -> extract (a part per batch) -> train -> assign (a part per container)
             -> merge (a part per group) -> publish -> done

A rebuild begins at train and assigns every container of the collection. A compaction begins at
merge, with the existing segments (`pipeline.indexing.compact`). The table in `pipeline.job_kinds`
lists the kinds of job and their functions.
"""

from pipeline.indexing.compact import due_upkeep
from pipeline.indexing.stages import advance, next_stage, open_stage, run_part

__all__ = ["advance", "due_upkeep", "next_stage", "open_stage", "run_part"]
