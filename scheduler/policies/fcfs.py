"""First come, first served: nobody outranks anybody.

All requests are equally urgent, and equals run in turn of arrival. It is what fairness is
compared with, and what a single user needs.
"""

from scheduler.policies.base import BasePolicy


class FirstComeFirstServed(BasePolicy):
    """Every priority is 0 for ever, so nothing is ever displaced."""

    name = "fcfs"
