"""Requests that wait, first come first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Any


class SchedulingPolicy(Enum):
    """Only the first one is simulated."""

    FCFS = "fcfs"
    PRIORITY = "priority"


class FCFSRequestQueue(deque[Any]):
    """In order of arrival."""

    def add_request(self, request: Any) -> None:
        """To the end."""
        self.append(request)

    def pop_request(self) -> Any:
        """The first one."""
        return self.popleft()

    def peek_request(self) -> Any:
        """The first one, which stays."""
        return self[0]

    def prepend_request(self, request: Any) -> None:
        """To the front."""
        self.appendleft(request)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """To the front, one after the other, so that the last one is the first."""
        self.extendleft(requests)

    def remove_request(self, request: Any) -> None:
        """One of them."""
        self.remove(request)

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Some of them."""
        gone = set(requests)
        kept = [request for request in self if request not in gone]
        self.clear()
        self.extend(kept)


def create_request_queue(policy: SchedulingPolicy) -> FCFSRequestQueue:
    """A queue for a policy."""
    if policy is not SchedulingPolicy.FCFS:
        raise ValueError(f"the engine 'embedded' has no queue for {policy}")
    return FCFSRequestQueue()
