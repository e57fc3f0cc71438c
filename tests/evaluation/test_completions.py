"""What a server sends, read as an answer, a refusal or a failure."""

import json

import pytest

from evaluation.completions import (
    IS_NO_API,
    Completion,
    FailedRequest,
    RefusedQuestion,
    UnusableEndpoint,
    failure_of,
    read_completion,
)

PAGE = "<html><body>busy</body></html>"


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (429, "Rate limit reached. Try again in 20s. Visit https://x.invalid/account/billing", FailedRequest),
        (429, "load balancer: too many requests", FailedRequest),
        (429, "You exceeded your current quota", RefusedQuestion),
        (403, "余额不足，请充值", RefusedQuestion),
        (413, "the prompt is too long", RefusedQuestion),
    ],
)
def test_only_an_account_without_money_makes_a_rate_limit_final(
    status: int, message: str, kind: type[Exception]
) -> None:
    body = json.dumps({"error": {"message": message}}, ensure_ascii=False)
    assert type(failure_of(status, body)) is kind


def test_a_page_speaks_of_the_url_only_where_the_url_can_be_at_fault() -> None:
    assert IS_NO_API in str(failure_of(404, PAGE))
    for status, kind in ((401, UnusableEndpoint), (413, RefusedQuestion), (503, FailedRequest)):
        failure = failure_of(status, PAGE)
        assert type(failure) is kind
        assert "/v1" not in str(failure)
    with pytest.raises(FailedRequest, match="/v1"):
        read_completion(PAGE)


def test_an_emoji_that_was_cut_in_two_can_be_written() -> None:
    body = json.dumps({"choices": [{"message": {"content": "好\ud83d"}, "finish_reason": "length"}]})
    assert read_completion(body) == Completion("好?", ended=False, tool_calls=[])
    assert str(failure_of(500, json.dumps({"error": "\ud83d"}))) == "500: ?"
