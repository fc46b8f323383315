"""The `ckcontrol heads` commands: find, show, tune, export."""
