"""An exception that nobody foresaw: the server learns its kind and place, its words stay where they may quote data."""

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

import fedpara as fp
from client.codec_mod import MISTAKE, REFUSED, codec_mod
from fedpara.config import client_settings, read_recipe
from fedpara.wire import OWN_PROCESS, SETTINGS
from simulations.workers import identify
from tests.conftest import SMALL, Silent

TASK = """
import fedpara as fp
from fedpara.task import load_task

@fp.register_task("broken")
class Broken(load_task("classification")):
    def loss(self, model, batch):
        raise RuntimeError("patient 17 has label 3")
"""


@pytest.fixture
def asked(tmp_path):
    identify()
    settings = ConfigRecord(
        {"recipe": client_settings(read_recipe(SMALL)), "run": "r1", "key": "1", "downlink": "fp32"}
    )
    message = Message(RecordDict({SETTINGS: settings}), 2, "train")
    node = {"client": "north", "partition-id": 0, "state-dir": str(tmp_path)}
    return message, lambda **more: Context(1, 2, node | more, RecordDict(), {})


def breaks(message, context):
    raise RuntimeError("patient 17 has label 3")


def test_a_node_keeps_the_words_and_tells_kind_and_place(asked, tmp_path):
    message, context = asked
    reply = codec_mod(message, context(**{OWN_PROCESS: 1}), breaks)
    assert reply.error.code == REFUSED
    assert reply.error.reason.startswith("RuntimeError at test_mistakes.py:")
    assert "patient" not in reply.error.reason
    kept = (tmp_path / "r1" / MISTAKE).read_text()
    assert "Traceback" in kept
    assert "patient 17 has label 3" in kept


def test_a_node_whose_disk_takes_nothing_answers_all_the_same(asked, tmp_path):
    message, context = asked
    (tmp_path / "r1").write_text("a file where the folder should be")
    reply = codec_mod(message, context(**{OWN_PROCESS: 1}), breaks)
    assert "its disk takes no file" in reply.error.reason


def test_in_one_process_it_is_raised_where_its_author_reads_it(asked):
    message, context = asked
    with pytest.raises(RuntimeError, match="patient 17"):
        codec_mod(message, context(), breaks)


def test_a_simulation_names_the_line_of_a_tasks_own_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(TASK)
    observer, table = Silent(), {**SMALL, "task": str(file), "mine": SMALL["classification"]}
    del table["classification"]
    fp.simulate(read_recipe(table), folder=tmp_path / "run", observer=observer)
    reasons = [dropped["reason"] for row in observer.rows for dropped in row["dropped"]]
    assert reasons
    assert all("patient 17 has label 3 (mine.py:8)" in reason for reason in reasons)
