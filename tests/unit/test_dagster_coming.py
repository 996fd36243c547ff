"""The copies of the next start are looked up once in a while, for each pipeline on its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from etl_dagster.config import PipelineConfig
from etl_dagster.integrations.dagster.checks.coming import recently_found
from tests.support.waiting import PATIENCE_S


def a_config(pipeline: str, publication: str = "etl_pub") -> PipelineConfig:
    return PipelineConfig(
        pipeline=pipeline,
        source={"dsn": "postgresql://nowhere/shop", "publication": publication},
    )


def test_a_source_that_answers_slowly_does_not_hold_up_the_ticks_of_other_pipelines() -> None:
    asked, answers = threading.Event(), threading.Event()

    def slow(config: PipelineConfig) -> Mapping[str, str]:
        asked.set()
        answers.wait(PATIENCE_S)
        return {"public.orders": "late"}

    found: list[Mapping[str, str]] = []
    waiting = threading.Thread(
        target=lambda: found.append(recently_found(a_config("coming_slow"), slow))
    )
    other = threading.Thread(
        target=lambda: found.append(recently_found(a_config("coming_other"), lambda config: {}))
    )
    waiting.start()
    assert asked.wait(PATIENCE_S)
    other.start()
    other.join(PATIENCE_S)
    first = list(found)
    answers.set()
    for thread in (waiting, other):
        thread.join(PATIENCE_S)

    assert first == [{}]
    assert found == [{}, {"public.orders": "late"}]


def test_an_answer_counts_for_a_while_and_for_one_configuration() -> None:
    asked: list[str] = []

    def find(config: PipelineConfig) -> Mapping[str, str]:
        asked.append(config.source.publication)
        return {}

    for publication in ("a", "a", "b", "b"):
        recently_found(a_config("coming_kept", publication), find)

    assert asked == ["a", "b"]
