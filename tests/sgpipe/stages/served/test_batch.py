"""The files of batches: what is written, and what is read or refused."""

from __future__ import annotations

import gzip
import json
import os
import threading
from pathlib import Path

import pytest

from sgpipe.errors import EngineError, UserError
from sgpipe.stages.served import batch
from sgpipe.stages.served.answers import RequestCache
from sgpipe.stages.served.batch import BatchSpool
from sgpipe.stages.served.batch_answers import BatchAnswer, read_answers
from tests.batches import requests_of

KEY = "0a" * 32
BODY = {"model": "tiny-vlm", "messages": []}


def line(custom_id: str = KEY, **fields: object) -> str:
    response = {"status_code": 200, "request_id": "r", "body": {"choices": []}}
    return json.dumps({"id": "1", "custom_id": custom_id, "response": response, **fields})


@pytest.fixture
def spool(tmp_path: Path) -> BatchSpool:
    folder = tmp_path / "spool"
    folder.mkdir()
    return BatchSpool.create(folder, tmp_path / "b.jsonl")


def test_each_request_is_written_once_by_all_threads(spool: BatchSpool) -> None:
    def add() -> None:
        for number in range(20):
            spool.add(f"{number:064x}", BODY | {"seed": number})

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [part] = spool.publish()
    assert part.requests == 20
    assert part.size == os.path.getsize(part.file)
    requests = requests_of(part.file)
    assert sorted(request["body"]["seed"] for request in requests) == list(range(20))
    assert requests[0]["custom_id"] == f"{requests[0]['body']['seed']:064x}"


def test_a_file_has_one_model_and_at_most_so_many_bytes(
    spool: BatchSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MOST_BYTES", 650)
    for number in range(6):
        body = {"model": f"model-{number % 2}", "messages": ["x" * 100]}
        spool.add(f"{number:064x}", body)
    parts = spool.publish()
    assert [part.file.name for part in parts] == ["b.jsonl", "b-2.jsonl", "b-3.jsonl", "b-4.jsonl"]
    assert [part.requests for part in parts] == [2, 2, 1, 1]
    for part in parts:
        assert {request["body"]["model"] for request in requests_of(part.file)} == {part.model}


def test_a_full_disk_is_named_and_leaves_no_batch(
    spool: BatchSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no device that is always full")
    monkeypatch.setattr(BatchSpool, "_file", lambda self, number: Path("/dev/full"))
    with pytest.raises(EngineError, match=r"No space left on device: .*b\.jsonl; free some space"):
        spool.add(KEY, BODY)
    assert not spool.target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (line() + "\n" + line()[:40], "line 2 is not JSON, or was cut: download"),
        ("[1]", "line 1 is not JSON"),
        (line("request-1"), "'request-1' is not the custom_id of a request by --batch-file"),
        (json.dumps({"custom_id": KEY, "method": "POST", "body": BODY}), "line 1 is a request"),
        (json.dumps({"custom_id": KEY}), "it needs custom_id and response"),
        (line(response={"status_code": "ok"}), "it needs custom_id and response"),
    ],
)
def test_files_that_are_no_answers_are_refused_with_the_line(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(content)
    cache = RequestCache(tmp_path / "requests.sqlite")
    with pytest.raises(UserError, match=message):
        cache.add_batch(read_answers(file))
    assert cache.count_unused() == 0, "all of a file, or nothing"


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl.gz"
    file.write_bytes(gzip.compress(line().encode()))
    with pytest.raises(UserError, match="is compressed: unpack it"):
        list(read_answers(file))


@pytest.mark.parametrize(
    ("fields", "status", "content"),
    [
        ({"response": None, "error": {"code": "batch_expired"}}, 0, "batch_expired"),
        ({"response": {"status_code": 429, "body": None}}, 429, "HTTP 429"),
        ({"response": {"status_code": 200, "body": None}}, 0, "HTTP 200"),
        ({"response": {"status_code": 200, "body": {"error": "busy"}}}, 0, "HTTP 200: busy"),
        ({"response": {"status_code": 413}, "error": "too\nlarge"}, 413, "HTTP 413: too large"),
        ({}, 200, '{"choices": []}'),
    ],
)
def test_outcomes_of_requests(
    tmp_path: Path, fields: dict[str, object], status: int, content: str
) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(line(**fields) + "\n\n")
    assert list(read_answers(file)) == [BatchAnswer(KEY, status, content)]


def test_of_two_answers_the_first_counts_but_any_answer_more_than_a_refusal(tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "requests.sqlite")
    body = b"{}"
    key = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    statuses = [(400, "refused"), (200, '{"a": 1}'), (200, '{"a": 2}'), (400, "refused")]
    new = [cache.add_batch([BatchAnswer(key, *status)]) for status in statuses]
    assert new == [1, 1, 0, 0]
    answer = cache.batch_answer(body)
    assert answer is not None
    assert answer.completion() == {"a": 1}
    assert cache.count_unused() == 1
    assert [cache.use_batch_answer(body), cache.use_batch_answer(body)] == [True, False]
    assert cache.count_unused() == 0
