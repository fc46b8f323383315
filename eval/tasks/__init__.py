"""Data sets by name: one file per benchmark, and the loader that finds, reads, cleans and samples them."""

from .flashrag import export_flashrag
from .load import ADAPTERS, Task, load_task, sample, task_names

__all__ = ["ADAPTERS", "Task", "export_flashrag", "load_task", "sample", "task_names"]
