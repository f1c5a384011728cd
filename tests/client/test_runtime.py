"""What a client process keeps warm: the last broadcast, the models of clients side by side."""

import weakref

import pytest
import torch

from client import runtime
from client.recorded import Recorder
from client.runtime import Runtime, forget
from fedpara.codec import Codec, codec
from fedpara.config import client_settings, read_recipe
from fedpara.errors import CodecError
from tests.client.test_recorded import again
from tests.conftest import SMALL


@pytest.fixture
def warm():
    return Runtime(client_settings(read_recipe(SMALL, {"rank_shares": (1.0, 0.5)})), "", "cpu", 1)


def test_a_broadcast_is_decoded_once_for_all_who_are_served_here(warm, monkeypatch):
    calls, decode = [], Codec.decode
    monkeypatch.setattr(Codec, "decode", lambda *own, **more: calls.append(own) or decode(*own, **more))
    down = codec("int8")
    first = down.encode({name: own + 1 for name, own in warm.shared.items()})
    second = bytes(bytearray(first))  # as another message brings it
    assert first is not second
    found = [served.decoded(down, blob, None) for served in (warm, warm.beside(1)) for blob in (first, second)]
    assert len(calls) == 1
    expected = decode(down, first, warm.shared)
    for own in found:
        assert all(torch.equal(own.state[name], tensor) for name, tensor in expected.items())
    other = warm.decoded(codec("fp16"), codec("fp16").encode(warm.shared), None).state
    assert len(calls) == 2
    assert all(torch.equal(own.half(), warm.shared[name].half()) for name, own in other.items())
    narrow = warm.narrowed(0.5)
    assert {name: own.shape for name, own in narrow.decoded(down, down.encode(narrow.shared), None).state.items()} == {
        name: own.shape for name, own in narrow.shared.items()
    }


def test_a_tensor_put_in_the_place_of_another_is_the_one_that_is_sent_and_set(warm):
    warm.model.register_buffer("seen", torch.zeros(()))
    before = warm.own
    assert warm.own is before
    warm.model.seen = warm.model.seen + 1  # as layers keep up their buffers
    name, weight = next(iter(warm.model.named_parameters()))
    owner, _, key = name.rpartition(".")
    setattr(warm.model.get_submodule(owner), key, torch.nn.Parameter(weight.detach() + 1))
    assert warm.own["seen"] == 1
    assert torch.equal(warm.own[name], weight + 1)
    warm.restore(None, {name: torch.zeros_like(own) for name, own in warm.own.items()})
    assert warm.model.seen == 0
    assert not any(own.any() for own in warm.model.parameters())


def test_a_tensor_that_is_neither_parameter_nor_buffer_is_looked_up_each_time(warm):
    class Counted(torch.nn.Module):
        seen = torch.zeros(())

        def get_extra_state(self):
            return self.seen

    warm._use(Counted())
    assert warm.own == {"_extra_state": 0}
    warm.model.seen = warm.model.seen + 1
    assert warm.own == {"_extra_state": 1}
    warm._use(torch.nn.Identity())
    assert warm.own == {}


def test_a_damaged_broadcast_is_not_kept(warm):
    down = codec("fp32")
    blob = down.encode(warm.shared)
    for _ in range(2):
        with pytest.raises(CodecError):
            warm.decoded(down, blob[:-1], None)
    assert warm.decoded(down, blob, None).state.keys() == warm.shared.keys()


def test_what_was_kept_warm_is_let_go_with_the_streams_of_clients_side_by_side(monkeypatch):
    recorders, use = [], Runtime._use

    def recorded(self, model):
        use(self, model)
        self.recorder = Recorder(again)
        recorders.append(weakref.ref(self.recorder))

    forget()  # what other tests have left
    monkeypatch.setattr(Runtime, "_use", recorded)
    settings = client_settings(read_recipe(SMALL))
    whole = runtime._runtime(settings, "", "cpu", 1, 0.0)
    assert whole.beside(2) is not whole
    del whole
    assert [own() is not None for own in recorders] == [True, True]
    forget()
    assert [own() for own in recorders] == [None, None]
