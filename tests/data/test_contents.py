"""Which changes of data a resumed run notices."""

from dataclasses import replace

import pytest

from lightning_minillm.data.contents import contents_of_records
from lightning_minillm.data.conversations import Conversation, Turn
from lightning_minillm.data.records import InstructionRecord

CALL = Turn("assistant", "", {"tool_calls": [{"name": "look"}]})
TALK = Conversation(
    (Turn("user", "Where?"), CALL, Turn("tool", "There."), Turn("assistant", "There.")), ({"name": "look"},)
)


def record_of(talk, **options):
    return InstructionRecord(talk.prompt_text(), "", (talk.response_text(),), conversation=talk, **options)


@pytest.mark.parametrize(
    "changed",
    [
        record_of(replace(TALK, tools=({"name": "find"},))),
        record_of(
            replace(
                TALK, turns=(TALK.turns[0], replace(CALL, extra={"tool_calls": [{"name": "find"}]}), *TALK.turns[2:])
            )
        ),
        record_of(TALK, response_ids=(1, 2)),
        record_of(replace(TALK, turns=(*TALK.turns[:-1], Turn("assistant", "Here.")))),
    ],
)
def test_all_that_a_model_reads_of_a_conversation_counts(changed):
    before = contents_of_records([record_of(TALK)])
    assert contents_of_records([changed]) != before
    assert contents_of_records([record_of(TALK, source="a name", task="talk")]) == before
