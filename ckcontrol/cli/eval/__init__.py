"""The `ckcontrol eval` commands: run, merge, report, compare, build-conflicts."""
