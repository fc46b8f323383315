"""The `ckcontrol weights` commands: mix."""
