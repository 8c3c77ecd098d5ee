"""Mutated files for every reader of files that may come from elsewhere: `python -m tests.fuzz`.

`mutate` changes bytes and JSON; `formats` says of each format what is changed and how it is read;
`child` reads, under limits, in a process of its own; `harness` starts that and collects.
"""
