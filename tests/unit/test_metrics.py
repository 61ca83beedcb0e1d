"""Counters and histograms: rules R46 and R60 to R62."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reliability.metrics import BUCKETS_S, UNKNOWN, CallMetrics, CallStatistics, Histogram, Outcome, RefusedRequests

LARGEST_ERROR = 0.04
durations = st.floats(min_value=1e-5, max_value=3600)


def only(metrics: CallMetrics) -> CallStatistics:
    (statistics,) = metrics.statistics()
    return statistics


@given(recorded=st.lists(durations, min_size=1, max_size=200), q=st.floats(min_value=0.001, max_value=1))
def test_r60_every_percentile_is_exact_to_within_four_percent(recorded: list[float], q: float) -> None:
    histogram = Histogram()
    for duration_s in recorded:
        histogram.record(duration_s)
    exact = sorted(recorded)[max(0, math.ceil(q * len(recorded)) - 1)]
    assert histogram.percentile(q) == pytest.approx(exact, rel=LARGEST_ERROR)


@given(recorded=st.lists(st.floats(min_value=0, max_value=1e9), max_size=300))
def test_r60_memory_does_not_grow_with_calls(recorded: list[float]) -> None:
    histogram = Histogram()
    before = len(histogram._buckets), sys.getsizeof(histogram._buckets)
    for duration_s in recorded:
        histogram.record(duration_s)
    assert (len(histogram._buckets), sys.getsizeof(histogram._buckets)) == before
    assert histogram.count == len(recorded)
    assert histogram.sum_s == pytest.approx(sum(recorded))


def test_r60_percentiles_never_fall_as_the_share_rises() -> None:
    histogram = Histogram()
    for milliseconds in range(1, 1000):
        histogram.record(milliseconds / 1000)
    values = [histogram.percentile(q / 100) for q in range(101)]
    assert values == sorted(values)


@pytest.mark.parametrize("duration_s", [0.0, 1e-9, 1e-5, 3600.0, 1e6])
def test_r60_what_lies_outside_of_the_range_is_counted_at_its_edge(duration_s: float) -> None:
    histogram = Histogram()
    histogram.record(duration_s)
    assert histogram.percentile(0.5) == pytest.approx(min(3600.0, max(1e-5, duration_s)), rel=LARGEST_ERROR)


def test_r60_without_calls_every_figure_is_zero() -> None:
    metrics = CallMetrics()
    metrics.register("add")
    figures = only(metrics)
    assert (figures.calls, figures.mean_ms, figures.p50_ms, figures.p99_ms, figures.error_rate) == (0, 0, 0, 0, 0)


@given(names=st.lists(st.text(), max_size=50))
def test_r61_names_that_are_not_registered_share_one_series(names: list[str]) -> None:
    metrics = CallMetrics()
    metrics.register("add")
    for name in names:
        metrics.started(name)
        metrics.finished(name, Outcome.OK, 0.001)
    assert {s.name for s in metrics.statistics()} <= {"add", UNKNOWN}
    assert sum(s.calls for s in metrics.statistics()) == len(names)


def test_r61_a_name_that_is_registered_twice_keeps_its_figures() -> None:
    metrics = CallMetrics()
    metrics.register("add")
    metrics.started("add")
    metrics.finished("add", Outcome.OK, 0.001)
    metrics.register("add")
    assert only(metrics).calls == 1


def test_r61_the_label_of_a_registered_name_is_the_name_and_of_any_other_is_unknown() -> None:
    metrics = CallMetrics()
    metrics.register("add")
    assert (metrics.label("add"), metrics.label("../../etc/passwd")) == ("add", UNKNOWN)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_r62_each_outcome_is_counted_apart(outcome: Outcome) -> None:
    metrics = CallMetrics()
    metrics.register("add")
    metrics.started("add")
    metrics.finished("add", outcome, 0.001)
    figures = only(metrics)
    assert {o.value: getattr(figures, o.value) for o in Outcome} == {o.value: int(o is outcome) for o in Outcome}


def test_r62_errors_are_everything_but_an_answer_and_a_cancellation() -> None:
    metrics = CallMetrics()
    metrics.register("add")
    for outcome in Outcome:
        metrics.started("add")
        metrics.finished("add", outcome, 0.001)
    figures = only(metrics)
    assert (figures.calls, figures.errors) == (7, 4)
    assert figures.error_rate == round(4 / 7, 4)


def test_r46_a_cancellation_by_the_client_is_not_an_error() -> None:
    metrics = CallMetrics()
    metrics.register("add")
    metrics.started("add")
    metrics.finished("add", Outcome.CANCELLED, 0.001)
    figures = only(metrics)
    assert (figures.cancelled, figures.errors, figures.error_rate) == (1, 0, 0)


def test_r62_calls_in_flight_are_a_gauge() -> None:
    metrics = CallMetrics()
    metrics.register("add")
    metrics.started("add")
    metrics.started("add")
    assert only(metrics).in_flight == 2
    metrics.finished("add", Outcome.OK, 0.001)
    assert only(metrics).in_flight == 1


def test_r62_calls_in_flight_of_unknown_names_are_shown_before_the_first_has_ended() -> None:
    metrics = CallMetrics()
    metrics.started("nobody knows it")
    assert only(metrics).in_flight == 1


def test_r61_unknown_is_left_out_while_nobody_used_it() -> None:
    metrics = CallMetrics()
    metrics.register("add")
    assert only(metrics).name == "add"


def test_r60_durations_are_given_in_milliseconds() -> None:
    metrics = CallMetrics()
    metrics.register("add")
    metrics.started("add")
    metrics.finished("add", Outcome.OK, 0.250)
    figures = only(metrics)
    assert figures.mean_ms == 250
    assert figures.p50_ms == pytest.approx(250, rel=LARGEST_ERROR)


@given(recorded=st.lists(durations | st.sampled_from(BUCKETS_S), max_size=200))
def test_r63_the_counts_at_the_bounds_of_monitoring_systems_are_exact(recorded: list[float]) -> None:
    histogram = Histogram()
    for duration_s in recorded:
        histogram.record(duration_s)
    assert histogram.cumulative() == [sum(d <= bound_s for d in recorded) for bound_s in BUCKETS_S]


@given(groups=st.lists(st.lists(durations, max_size=20), max_size=5), q=st.floats(min_value=0, max_value=1))
def test_r60_histograms_add_up_to_one_that_had_counted_everything(groups: list[list[float]], q: float) -> None:
    parts, whole = [Histogram() for _ in groups], Histogram()
    for part, group in zip(parts, groups, strict=True):
        for duration_s in group:
            part.record(duration_s)
            whole.record(duration_s)
    merged = Histogram.merged(parts)
    assert (merged.count, merged.percentile(q), merged.cumulative()) == (
        whole.count,
        whole.percentile(q),
        whole.cumulative(),
    )
    assert merged.sum_s == pytest.approx(whole.sum_s)


def test_r62_durations_of_answers_and_of_each_kind_of_failure_are_kept_apart() -> None:
    metrics = CallMetrics()
    metrics.register("add")
    for outcome, duration_s in [(Outcome.OK, 0.01), (Outcome.TIMEOUT, 25.0), (Outcome.FALLBACK, 0.04)]:
        metrics.started("add")
        metrics.finished("add", outcome, duration_s)
    ok, timeout = metrics.durations()
    assert (ok.name, ok.error_type, ok.calls) == ("add", "", 2)
    assert ok.sum_s == pytest.approx(0.05)
    assert ok.cumulative == [1, 1, *[2] * 12]
    assert (timeout.name, timeout.error_type, timeout.calls, timeout.sum_s) == ("add", "timeout", 1, 25)
    assert timeout.cumulative == [0] * 10 + [1] * 4
    figures = only(metrics)
    assert figures.calls == 3
    assert figures.p50_ms == pytest.approx(40, rel=LARGEST_ERROR)
    assert figures.mean_ms == round(25_050 / 3, 3)


def test_r60_a_name_that_nobody_calls_costs_no_histogram() -> None:
    metrics = CallMetrics()
    metrics.register("add")
    assert metrics.durations() == []


def test_r60_percentiles_that_are_reported_are_those_they_are_called() -> None:
    metrics = CallMetrics()
    metrics.register("add")
    for milliseconds in range(1, 1001):
        metrics.started("add")
        metrics.finished("add", Outcome.OK, milliseconds / 1000)
    figures = only(metrics)
    assert figures.p50_ms == pytest.approx(500, rel=LARGEST_ERROR)
    assert figures.p95_ms == pytest.approx(950, rel=LARGEST_ERROR)
    assert figures.p99_ms == pytest.approx(990, rel=LARGEST_ERROR)


def test_r60_the_first_bucket_holds_what_is_not_above_its_bound() -> None:
    histogram = Histogram()
    histogram.record(1e-5)
    assert histogram.percentile(1) == 1e-5
    histogram.record(1.01e-5)
    assert histogram.percentile(1) > 1e-5


def test_r63_durations_are_given_to_a_thousandth_of_a_millisecond() -> None:
    metrics = CallMetrics()
    metrics.register("add")
    metrics.started("add")
    metrics.finished("add", Outcome.OK, 0.0012345678)
    assert only(metrics).mean_ms == 1.235


def test_r62_refused_requests_of_several_processes_are_added_up() -> None:
    counted = [{"rate_limited": 1, "unauthorized": 2}, {"rate_limited": 10, "unauthorized": 20}]
    assert RefusedRequests.merged(counted) == RefusedRequests(rate_limited=11, unauthorized=22)
    assert RefusedRequests.merged([]) == RefusedRequests()
