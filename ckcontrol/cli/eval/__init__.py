"""The `ckcontrol eval` commands: run, merge, report, compare, export-pairs, build-conflicts."""
