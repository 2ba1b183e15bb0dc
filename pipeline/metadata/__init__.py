"""SQLAlchemy models and the functions that read and write them.

Functions take a `sqlalchemy.orm.Session`, whose transaction is the caller's (see
`engine.session_scope`), and return the frozen dataclasses of `records`:

- `engine`: engine, sessions, schema
- `collections`: create, find, list, describe, delete
- `images`: registration of files; images and failures for answers and reports
- `identities`: what segments name images by
- `jobs`, `parts`: work and how far it is; `extraction`: what came of it; `hosts`: heartbeats
- `trees`, `versions`: trees, segments and the versions that searches use
"""
