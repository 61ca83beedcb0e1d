"""The budget of retries and its configuration: rule R59."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from reliability.retry import RetryBudget, RetryConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attempts", 0),
        ("attempts", 11),
        ("wait_initial_s", -1),
        ("wait_max_s", float("inf")),
        ("wait_jitter", 1.1),
        ("retry_after_max_s", float("nan")),
        ("budget_tokens", -0.1),
        ("tokens_per_success", 2),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be from .* to .*; it is {value}"):
        RetryConfig(**{name: value})  # type: ignore[arg-type]


def test_a_budget_begins_full_and_never_holds_more() -> None:
    budget = RetryBudget(RetryConfig(budget_tokens=2, tokens_per_success=0.7))
    budget.earn()
    assert budget.tokens == 2
    assert budget.spend()
    for _ in range(5):
        budget.earn()
    assert budget.tokens == 2


@given(st.integers(1, 1000), st.integers(0, 20))
def test_a_budget_is_exact_whatever_a_success_pays_in(thousandths: int, tokens: int) -> None:
    budget = RetryBudget(RetryConfig(budget_tokens=tokens + 1, tokens_per_success=thousandths / 1000))
    while budget.spend():
        pass
    successes = -(-1000 // thousandths)  # so many are worth a token
    for _ in range(successes - 1):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend()


class RetryBudgetMachine(RuleBasedStateMachine):
    """Successes and retries in any order; the model is an account in fractions."""

    full, income = Fraction(3), Fraction(3, 10)

    def __init__(self) -> None:
        super().__init__()
        self.budget = RetryBudget(RetryConfig(budget_tokens=float(self.full), tokens_per_success=float(self.income)))
        self.account = self.full
        self.successes = self.retries = 0

    @rule()
    def a_call_succeeds(self) -> None:
        self.budget.earn()
        self.successes += 1
        self.account = min(self.full, self.account + self.income)

    @rule()
    def a_retry_is_wanted(self) -> None:
        affordable = self.account >= 1
        assert self.budget.spend() == affordable
        self.account -= affordable
        self.retries += affordable

    @invariant()
    def the_account_is_right(self) -> None:
        assert self.budget.tokens == float(self.account)

    @invariant()
    def retries_are_bounded_by_the_budget_and_a_share_of_the_successes(self) -> None:
        assert self.retries <= self.full + self.income * self.successes


RetryBudgetMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestR59AnyOrderOfSuccessesAndRetries = RetryBudgetMachine.TestCase
