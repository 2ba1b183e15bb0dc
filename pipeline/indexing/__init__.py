"""The stages of jobs: where extraction, index, storage and metadata meet.

Every stage has parts (`open_stage`), every part is one function call that may run twice, and
`next_stage` says what follows when all are done. `pipeline.local` calls them in a loop,
`workers.tasks` one a message; truth is SQL and the store alone, so that whoever finds a job
unfinished can go on with it.

::

    register -> extract (a part per batch) -> train -> assign (a part per container)
             -> merge (a part per group) -> publish -> done

A rebuild begins at train and assigns every container of the collection. A compaction begins at
merge, with the segments that there are (`pipeline.indexing.compact`). Which kinds of job there are,
and which function does what of each, is the table in `pipeline.job_kinds`.
"""

from pipeline.indexing.compact import due_upkeep
from pipeline.indexing.stages import advance, next_stage, open_stage, run_part

__all__ = ["advance", "due_upkeep", "next_stage", "open_stage", "run_part"]
