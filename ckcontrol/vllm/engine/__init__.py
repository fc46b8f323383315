"""Inside vLLM's processes: the scheduler that keeps pairs in step, the processor that fuses them, the hooks."""
