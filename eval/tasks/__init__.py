"""Data sets by name: one file per benchmark, and the loader that finds, reads, cleans and samples them."""

from .load import ADAPTERS, Task, load_task, sample, task_names
from .record_files import export_flashrag

__all__ = ["ADAPTERS", "Task", "export_flashrag", "load_task", "sample", "task_names"]
