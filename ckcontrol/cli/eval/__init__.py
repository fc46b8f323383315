"""The `ckcontrol eval` commands: run, compare, report and the data around them."""
