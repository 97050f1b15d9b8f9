"""Which scheduler class an engine is to load: the launcher's side, which loads no vLLM."""


def scheduler_class_path(*, async_scheduling: bool) -> str:
    """The ``scheduler_cls`` for an engine that schedules ahead of its device, or does not."""
    name = "FastSwitchAsyncScheduler" if async_scheduling else "FastSwitchScheduler"
    return f"scheduler.vllm_scheduler.{name}"
