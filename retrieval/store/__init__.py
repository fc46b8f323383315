"""The folder of an index, old or new: written whole or not at all, checked before it is read."""
