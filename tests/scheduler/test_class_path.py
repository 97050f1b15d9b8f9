"""The scheduler class that an engine is told to load."""

import pytest

from scheduler.class_path import scheduler_class_path


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_the_path_names_a_class_that_is_there(*, async_scheduling: bool) -> None:
    """The class loads by its path as vLLM does it, and schedules ahead exactly where asked to."""
    from vllm.utils.import_utils import resolve_obj_by_qualname
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    loaded = resolve_obj_by_qualname(scheduler_class_path(async_scheduling=async_scheduling))

    assert issubclass(loaded, AsyncScheduler) is async_scheduling
