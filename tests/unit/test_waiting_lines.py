"""How much may wait for a server (R27); `test_supervisor_session` has who waits, and for how long."""

from __future__ import annotations

from reliability.waiting_lines import MAX_BYTES, Waiting, WaitingLines

HALF = MAX_BYTES // 2


def test_r27_what_waits_is_limited_by_its_bytes_and_what_has_left_counts_no_more() -> None:
    queue = WaitingLines()

    def add(number: int, size: int) -> bool:
        return queue.add(Waiting(b"x" * size, number, "tools/call", float(number)))

    def is_full() -> bool:
        return not add(0, 1)

    assert add(1, HALF)
    assert add(2, HALF)
    assert is_full()
    assert queue.cancel(2)
    assert not queue.cancel(2)
    assert add(3, HALF)
    assert is_full()
    assert [entry.request_id for entry in queue.expired(2.0)] == [1]
    assert add(4, HALF)
    assert is_full()
    assert [entry.request_id for entry in queue.take_all()] == [3, 4]
    assert not queue
    assert add(5, HALF)
    assert add(6, HALF)
    assert is_full()
