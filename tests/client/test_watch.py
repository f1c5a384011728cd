"""A client's own log: a line a message, and never the reason why a reply is lost."""

from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from client.watch import Watch, write_log
from fedpara.run import read_rows
from fedpara.wire import CONFIG, ROUND
from simulations.workers import identify


@pytest.fixture
def exchange():
    identify()
    message = Message(RecordDict({CONFIG: ConfigRecord({ROUND: 3})}), 2, "train")
    watch = Watch()
    watch.lap("start")
    return message, Message(RecordDict(), reply_to=message), watch


def test_a_line_that_a_full_disk_tore_costs_that_line_alone(exchange, tmp_path):
    message, reply, watch = exchange
    file = tmp_path / "state" / "messages.jsonl"
    for _ in range(2):
        write_log(file, message, reply, 16, watch)
    file.write_bytes(file.read_bytes()[:-9])
    write_log(file, message, reply, 24, watch)
    assert [(row["round"], row["kind"], row["down"]) for row in read_rows(file)] == [(3, "train", 16), (3, "train", 24)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_log_that_cannot_be_written_is_a_warning(exchange, caplog):
    message, reply, watch = exchange
    write_log(Path("/dev/full"), message, reply, 16, watch)
    assert "No space left" in caplog.text
