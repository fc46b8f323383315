"""Files to documents: every format, one text or many, and what was skipped and why."""
