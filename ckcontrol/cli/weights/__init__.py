"""The `ckcontrol weights` commands: train, mix, export."""
